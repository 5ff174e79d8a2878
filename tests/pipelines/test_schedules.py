"""Strengths that change by step: followed in a pipeline's call, and nothing else of the model moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import pytest
import torch
from diffusers.callbacks import PipelineCallback
from torch import Tensor

import lorry
from lorry.errors import FuseError, StateError
from lorry.pipelines.schedules import Between, Points, Times
from lorry.prompts import LoraTag
from models import random_deltas, tiny_flux_pipeline, tiny_sd3_pipeline, tiny_sd_pipeline, tiny_sdxl_pipeline
from small import changing
from snapshots import check_same, snapshot

PIPELINES: dict[str, Callable[..., Any]] = {
    "sd": tiny_sd_pipeline,
    "sdxl": tiny_sdxl_pipeline,
    "sd3": tiny_sd3_pipeline,
    "flux": tiny_flux_pipeline,
}


def loaded(family: str = "sd", cls: Any = None) -> Any:
    """A tiny pipeline with one adapter, `toy`, on its denoiser and text encoder."""
    pipe = lorry.attach(PIPELINES[family]() if cls is None else PIPELINES[family](cls=cls))
    pipe.set_progress_bar_config(disable=True)
    for component in ("unet", "transformer", "text_encoder"):
        model = getattr(pipe, component, None)
        if model is not None:
            with changing(model) as (state, undo):
                deltas = random_deltas(model, ends=["to_q", "to_v", "conv1", "q_proj"], size=1.0)
                state.add("toy", deltas, undo)
    pipe.set_adapters("toy", 0.5)
    return pipe


def drawn(pipe: Any, steps: int = 4, **kwargs: Any) -> Tensor:
    size = {} if "image" in kwargs else {"height": 16, "width": 16}
    return pipe(
        "a cat",
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        **(size | kwargs),
    ).images


def denoiser(pipe: Any) -> Any:
    return getattr(pipe, "unet", None) or pipe.transformer


def strengths_seen(pipe: Any, **kwargs: Any) -> list[float]:
    """The strength of the adapter at one of its modules, at each call of the denoiser."""
    seen: list[float] = []
    path = next(iter(denoiser(pipe).lorry.adapters["toy"].deltas))
    module = denoiser(pipe).get_submodule(path)
    hook = module.register_forward_pre_hook(lambda m, _: seen.append(round(float(m.lorry_scale[0]), 6)))
    try:
        drawn(pipe, **kwargs)
    finally:
        hook.remove()
    return seen


# --- the schedules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (Points(((0.0, 0.0), (1.0, 1.0))), [0.0, 0.25, 0.5, 0.75, 1.0]),
        (Points(((0.0, 1.0), (0.5, 1.0), (0.5, 0.0))), [1.0, 1.0, 0.0, 0.0, 0.0]),
        (Points(((0.5, 2.0),)), [2.0] * 5),
        (Points(((2.0, 0.0), (4.0, 1.0))), [0.0, 0.0, 0.5, 1.0, 1.0]),
        (Between(2, 4), [0.0, 1.0, 1.0, 0.0, 0.0]),
        (Between(start=3), [0.0, 0.0, 1.0, 1.0, 1.0]),
        (Between(stop=1), [0.0] * 5),
        (Between(stop=0.4), [1.0, 1.0, 0.0, 0.0, 0.0]),
        (Between(start=0.4), [0.0, 0.0, 1.0, 1.0, 1.0]),
        (Between(0.0, 1.0), [1.0] * 5),
        (Times((Between(start=2), Points(((0.0, 1.0), (1.0, 0.0))))), [0.0, 0.75, 0.5, 0.25, 0.0]),
    ],
)
def test_a_schedule_is_a_factor_for_each_step(
    schedule: Callable[[int, int], float], factors: list[float]
) -> None:
    assert [schedule(step, 5) for step in range(1, 6)] == factors


def test_one_step_is_the_first() -> None:
    assert Points(((0.0, 0.3), (1.0, 1.0)))(1, 1) == 0.3


# --- in a pipeline --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", PIPELINES)
def test_each_step_has_its_strength(family: str) -> None:
    pipe = loaded(family)
    pipe.set_adapters("toy", lorry.Strengths(0.8, steps=[(0, 0), (1, 1)]))
    seen = strengths_seen(pipe, steps=5)
    assert list(dict.fromkeys(seen)) == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert strengths_seen(pipe, steps=3)[0] == 0.0
    assert denoiser(pipe).lorry.mode("toy") == "active at 0.8 by step"
    assert pipe.text_encoder.lorry.mode("toy") == "active at 0.8"


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_a_schedule_draws_what_setting_the_strength_before_each_step_draws(family: str) -> None:
    scheduled, by_hand = loaded(family), loaded(family)
    name = "unet" if family == "sd" else "transformer"
    scheduled.set_adapters("toy", lorry.Strengths(1.0, steps=lambda step, steps: step / steps))

    def set_next(pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        by_hand.set_adapters("toy", {name: (step + 2) / 4, "text_encoder": 1.0})
        return tensors

    by_hand.set_adapters("toy", {name: 1 / 4, "text_encoder": 1.0})
    assert torch.equal(drawn(scheduled), drawn(by_hand, callback_on_step_end=set_next))


def test_a_prompt_says_a_schedule() -> None:
    pipe = loaded()
    pipe.set_adapters("toy", lorry.parse_prompt("<lora:toy:0.8:start=2:stop=4>").loras)
    assert list(strengths_seen(pipe, steps=5)) == [0.0, 0.8, 0.8, 0.0, 0.0]
    pipe.set_adapters("toy", LoraTag("toy", points=((0.0, 0.2), (1.0, 0.6)), stop=3))
    assert list(strengths_seen(pipe, steps=3)) == [0.2, 0.4, 0.0]


def test_the_strength_of_a_call_multiplies_the_schedule() -> None:
    pipe = loaded()
    pipe.set_adapters("toy", lorry.Strengths(0.8, steps=[(0, 0), (1, 1)]))
    seen = strengths_seen(pipe, steps=3, cross_attention_kwargs={"scale": 0.5})
    assert seen == [0.0, 0.2, 0.4]
    assert strengths_seen(pipe, steps=3) == [0.0, 0.4, 0.8]


def test_img2img_counts_the_steps_that_it_takes() -> None:
    pipe = loaded(cls=diffusers.StableDiffusionImg2ImgPipeline)
    pipe.set_adapters("toy", lorry.Strengths(1.0, steps=[(0, 0), (1, 1)]))
    assert strengths_seen(pipe, steps=6, image=torch.rand(1, 3, 16, 16), strength=0.5) == [0.0, 0.5, 1.0]


def test_a_callback_of_the_callers_is_called_too() -> None:
    pipe, steps = loaded(), []
    pipe.set_adapters("toy", lorry.Strengths(steps=[(0, 0), (1, 1)]))

    def mine(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append((step, sorted(tensors)))
        return tensors

    drawn(pipe, steps=2, callback_on_step_end=mine)
    assert steps == [(0, ["latents"]), (1, ["latents"])]


def test_a_callback_object_gets_the_tensors_that_it_asks_for() -> None:
    asked: list[list[str]] = []

    class Mine(PipelineCallback):
        @property
        def tensor_inputs(self) -> list[str]:
            return ["latents", "prompt_embeds"]

        def callback_fn(
            self, pipeline: Any, step_index: Any, timesteps: Any, callback_kwargs: dict[str, Any]
        ) -> dict[str, Any]:
            asked.append(sorted(callback_kwargs))
            return callback_kwargs

    pipe = loaded()
    pipe.set_adapters("toy", lorry.Strengths(steps=[(0, 0), (1, 1)]))
    drawn(pipe, steps=2, callback_on_step_end=Mine(cutoff_step_ratio=0.5))
    assert asked == [["latents", "prompt_embeds"]] * 2


@pytest.mark.parametrize("family", ["sd", "sdxl", "flux"])
def test_a_step_moves_nothing_but_the_numbers_of_the_strengths(family: str) -> None:
    pipe = loaded(family)
    pipe.set_adapters("toy", lorry.Strengths(0.8, steps=[(0, 0.1), (1, 1)]))
    places: list[dict[str, tuple[int, ...]]] = []

    def look(pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        modules = dict(denoiser(pipe).named_modules())
        buffers = {
            path: tuple(0 if b is None else b.data_ptr() for b in m._buffers.values())
            for path, m in modules.items()
        }
        places.append(buffers | {f"{path}: class": (id(type(m)), id(m)) for path, m in modules.items()})
        return tensors

    drawn(pipe, callback_on_step_end=look)
    assert len(places) == 4
    assert all(place == places[0] for place in places)


def test_what_torch_compile_has_compiled_is_compiled_once() -> None:
    from torch._dynamo.testing import CompileCounter

    pipe, plain, counter = loaded(), loaded(), CompileCounter()
    for each in (pipe, plain):
        each.set_adapters("toy", lorry.Strengths(0.8, {"down_blocks": 0.0}, steps=[(0, 0), (1, 1)]))
    drawn(pipe, steps=1)
    pipe.unet.mid_block.compile(backend=counter)
    drawn(pipe, steps=1)
    first = counter.frame_count
    assert first > 0
    assert torch.equal(drawn(pipe, steps=4), drawn(plain, steps=4))
    assert counter.frame_count == first


def test_after_a_call_and_after_one_that_failed_all_is_as_before() -> None:
    pipe = loaded()
    pipe.set_adapters("toy", lorry.Strengths(0.8, steps=[(0, 0), (1, 1)]))
    before = snapshot(pipe.unet)

    def fail(_pipe: Any, step: int, _timestep: Any, tensors: Mapping[str, Any]) -> Any:
        if step == 1:
            raise ZeroDivisionError
        return tensors

    drawn(pipe)
    check_same(snapshot(pipe.unet), before)
    with pytest.raises(ZeroDivisionError):
        drawn(pipe, callback_on_step_end=fail)
    check_same(snapshot(pipe.unet), before)


def test_a_schedule_cannot_be_fused() -> None:
    pipe = loaded()
    pipe.set_adapters("toy", lorry.Strengths(0.8, steps=[(0, 0), (1, 1)]))
    with pytest.raises(FuseError, match="'toy' changes by step"):
        pipe.fuse_lora()
    assert pipe.num_fused_loras == 0


def test_a_pipeline_that_does_not_tell_its_steps_is_refused() -> None:
    class Silent(diffusers.StableDiffusionPipeline):
        def __call__(self, prompt: str, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            raise AssertionError

    pipe = loaded(cls=Silent)
    pipe.set_adapters("toy", lorry.Strengths(0.8, steps=[(0, 0), (1, 1)]))
    with pytest.raises(StateError, match="Silent does not say when a denoising step is over"):
        pipe("a cat")
