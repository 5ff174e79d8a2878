"""Several threads: on pipelines of their own they do not know of each other, on one pipeline they take turns."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorry.errors import StateError
from lorry.patching import exclusive
from models import tiny_unet, unet_inputs
from pipelines import oracle
from pipelines.conftest import Files
from small import put

NAMES = ("a", "b")
SCALES = (0.5, 1.0, 2.0)


def at_once(*jobs: Callable[[], Any]) -> list[Any]:
    """Run each job in a thread of its own, all beginning together; raise what any of them raises."""
    start = threading.Barrier(len(jobs))

    def run(job: Callable[[], Any]) -> Any:
        start.wait(timeout=60)
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result(timeout=300) for future in [pool.submit(run, job) for job in jobs]]


def drawn(pipe: Any, scale: float = 1.0) -> Tensor:
    return oracle.drawn(pipe, cross_attention_kwargs={"scale": scale})


def check_one_of(picture: Tensor, expected: Iterable[Tensor]) -> None:
    """Raise where a picture is none of those that the adapters' states give."""
    assert any(torch.equal(picture, one) for one in expected), "a picture of two states at once"


def test_threads_that_load_onto_pipelines_of_their_own_do_what_one_after_the_other_does(files: Files) -> None:
    family_files = {"sd": files.get("sd"), "sdxl": files.get("sdxl"), "flux": files.get("flux")}

    def job(family: str) -> Callable[[], list[Tensor]]:
        def whole_life() -> list[Tensor]:
            pipe = oracle.ours(family)
            pictures = []
            for _ in range(3):
                pipe.load_lora_weights(family_files[family], adapter_name="toy")
                pipe.set_adapters("toy", 0.7)
                pictures.append(oracle.denoised(pipe))
                pipe.fuse_lora()
                pictures.append(oracle.denoised(pipe))
                pipe.unload_lora_weights()
                pictures.append(oracle.denoised(pipe))
            return pictures

        return whole_life

    jobs = [job(family) for family in (*family_files, *family_files)]
    alone = [job() for job in jobs]
    for found, expected in zip(at_once(*jobs), alone, strict=True):
        assert all(map(torch.equal, found, expected))


def loaded(files: Files) -> Any:
    pipe = oracle.ours("sd")
    for name in NAMES:
        pipe.load_lora_weights(files.get("sd", name), adapter_name=name)
    return pipe


def test_calls_and_changes_of_one_pipeline_take_turns(files: Files) -> None:
    pipe = loaded(files)
    expected = {}
    for name, scale in itertools.product(NAMES, SCALES):
        pipe.set_adapters(name)
        expected[name, scale] = drawn(pipe, scale)
    stop = threading.Event()

    def draw(scale: float) -> Callable[[], None]:
        def drawing() -> None:
            try:
                for _ in range(6):
                    check_one_of(drawn(pipe, scale), [expected[name, scale] for name in NAMES])
            finally:
                stop.set()

        return drawing

    def switch() -> None:
        for name in itertools.cycle(NAMES):
            if stop.is_set():
                return
            pipe.set_adapters(name)

    at_once(*map(draw, SCALES), switch)


def test_loads_fuses_and_deletions_wait_for_the_picture_that_is_being_drawn(files: Files) -> None:
    pipe = loaded(files)
    pipe.set_adapters("a")
    expected = {"a": drawn(pipe)}
    pipe.fuse_lora()
    expected["fused"] = drawn(pipe)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    expected["bare"] = drawn(pipe)
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            pipe.load_lora_weights(files.get("sd", "a"), adapter_name="a")
            pipe.fuse_lora()
            pipe.unfuse_lora()
            pipe.delete_adapters("a")

    def draw() -> None:
        try:
            for _ in range(8):
                check_one_of(drawn(pipe), expected.values())
        finally:
            stop.set()

    at_once(draw, draw, change)


def test_pipelines_that_share_a_model_take_turns_too(files: Files) -> None:
    pipe = loaded(files)
    other = oracle.made(type(pipe), pipe.components)
    entered, go_on = threading.Event(), threading.Event()

    def draw() -> Tensor:
        def hold(*args: Any) -> dict[str, Any]:
            entered.set()
            go_on.wait(timeout=60)
            return {}

        return oracle.drawn(pipe, callback_on_step_end=hold)

    def change() -> bool:
        entered.wait(timeout=60)
        waiter = threading.Thread(target=other.set_adapters, args=("a",))
        waiter.start()
        waiter.join(timeout=0.2)
        waited = waiter.is_alive() and pipe.get_active_adapters() == ["b"]
        go_on.set()
        waiter.join(timeout=60)
        return waited

    pipe.set_adapters("b")
    expected = drawn(pipe)
    picture, waited = at_once(draw, change)
    assert torch.equal(picture, expected)
    assert waited
    assert pipe.get_active_adapters() == ["a"]


def test_a_callback_may_change_the_adapters_of_its_own_call(files: Files) -> None:
    pipe = loaded(files)
    pipe.set_adapters("a")
    whole = drawn(pipe)

    def switch(pipe: Any, step: int, timestep: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipe.set_adapters("b")
        return {}

    assert not torch.equal(oracle.drawn(pipe, callback_on_step_end=switch), whole)
    assert pipe.get_active_adapters() == ["b"]


def test_a_model_that_another_thread_calls_with_a_strength_is_not_called_at_that_strength() -> None:
    model = tiny_unet()
    put(model)
    inside, go_on = threading.Event(), threading.Event()

    def hold(*args: Any) -> None:
        inside.set()
        go_on.wait(timeout=60)

    hook = model.conv_in.register_forward_hook(hold)
    inputs = unet_inputs(model)

    def first() -> Tensor:
        with torch.no_grad():
            return model(**inputs, cross_attention_kwargs={"scale": 0.5}).sample

    def second() -> None:
        inside.wait(timeout=60)
        try:
            with pytest.raises(StateError, match="by another thread"):
                model(**inputs)
        finally:
            go_on.set()

    picture, _ = at_once(first, second)
    hook.remove()
    assert torch.equal(picture, first())


def test_threads_that_want_the_same_models_in_another_order_do_not_wait_for_ever() -> None:
    models = [nn.Linear(1, 1) for _ in range(3)]

    def job(order: Sequence[nn.Module]) -> Callable[[], int]:
        def entering() -> int:
            for _ in range(200):
                with exclusive(order), exclusive(reversed(order)):
                    pass
            return 1

        return entering

    assert at_once(job(models), job(models[::-1]), job([models[1], models[0]])) == [1, 1, 1]
