"""Whole pipelines whose models are kept elsewhere than where they compute: the pictures are those of a plain one.

No accelerator is needed: the CPU is what is computed on, and what is kept in between lies on the `meta` device, on
disk, in other memory of the CPU, or in a smaller dtype. Streams are simulated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from torch import Tensor, nn

import lorry
from lorry.errors import StateError
from patching.test_group_offloading import a_machine_with_streams, offload
from pipelines import oracle
from pipelines.conftest import Files
from small import check_near

__all__ = ["a_machine_with_streams"]

CPU = torch.device("cpu")


def models_of(pipe: Any) -> list[nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


def model_offload(pipe: Any, folder: Path) -> None:
    """What `enable_model_cpu_offload` does after it has made sure that there is an accelerator."""
    hook = None
    for model in models_of(pipe):
        _, hook = accelerate.cpu_offload_with_hook(model, CPU, prev_module_hook=hook)


def sequential(pipe: Any, folder: Path) -> None:
    for model in models_of(pipe):
        accelerate.cpu_offload(model, execution_device=CPU, offload_buffers=len(model._parameters) > 0)


def device_map(pipe: Any, folder: Path) -> None:
    for model in models_of(pipe):
        accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)


def device_map_with_disk(pipe: Any, folder: Path) -> None:
    denoiser = oracle.denoiser_of(pipe)
    parts: Any = {name: "disk" if name.endswith("blocks") else "cpu" for name, _ in denoiser.named_children()}
    accelerate.dispatch_model(denoiser, parts, main_device=CPU, offload_dir=folder, force_hooks=True)


def group(kind: str) -> Callable[[Any, Path], None]:
    def place(pipe: Any, folder: Path) -> None:
        for model in models_of(pipe):
            blocks: dict[str, Any] = {"num_blocks_per_group": 1} if kind == "block_level" else {}
            apply_group_offloading(model, CPU, CPU, offload_type=kind, **blocks)

    return place


def by_stream(pipe: Any, folder: Path) -> None:
    offload(oracle.denoiser_of(pipe), "leaf_level", stream=True)


def layerwise_casting(pipe: Any, folder: Path) -> None:
    apply_layerwise_casting(oracle.denoiser_of(pipe), torch.bfloat16, torch.float32)


PLACEMENTS: dict[str, Callable[[Any, Path], None]] = {
    "model offload": model_offload,
    "sequential": sequential,
    "device map": device_map,
    "device map with disk": device_map_with_disk,
    "group, block": group("block_level"),
    "group, leaf": group("leaf_level"),
    "group, leaf, by stream": by_stream,
    "layerwise casting": layerwise_casting,
}


def fresh(family: str) -> Any:
    """A pipeline whose weights are numbers of bfloat16, so that casting does not change them."""
    pipe = oracle.ours(family)
    denoiser = oracle.denoiser_of(pipe)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.copy_(parameter.bfloat16().float())
    oracle.drawn(pipe)  # diffusers puts a registry of hooks on at the first call
    return pipe


def hooks_of(pipe: Any) -> list[Any]:
    """Every hook of accelerate's and diffusers', and every forward that they have put in."""
    found: list[Any] = []
    for model in models_of(pipe):
        for module in model.modules():
            attributes = vars(module)
            found.append(attributes.get("_hf_hook"))
            registry = attributes.get("_diffusers_hook")
            found += [] if registry is None else [registry, *registry.hooks.values(), *registry._fn_refs]
    return found


def life(pipe: Any, files: Files, family: str, place: Callable[[Any], object], first: str) -> list[Tensor]:
    """The pictures of a pipeline to which most things are done, placed before or in the middle of it."""
    pictures = []

    def look(**kwargs: Any) -> None:
        pictures.append(oracle.drawn(pipe, **kwargs))

    if first == "placed":
        place(pipe)
        look()
    hooks = hooks_of(pipe)
    pipe.load_lora_weights(files.get(family, "a"), adapter_name="a")
    pipe.set_adapters("a", 0.5)
    if first == "loaded":
        place(pipe)
    look()
    if first == "loaded":  # by stream, diffusers itself takes off a hook in the first call
        hooks = hooks_of(pipe)
    pipe.load_lora_weights(files.get(family, "b"), adapter_name="b")
    look()
    pipe.set_adapters(["a", "b"], [0.5, -0.75])
    look()
    look(**{oracle.scale_argument(pipe): {"scale": 0.5}})
    look()
    pipe.disable_lora()
    look()
    pipe.enable_lora()
    pipe.set_lora_device(["a"], "cpu")
    pipe.delete_adapters("b")
    look()
    pipe.unload_lora_weights()
    look()
    after = hooks_of(pipe)
    assert len(after) == len(hooks)
    assert all(one is other for one, other in zip(after, hooks, strict=True)), (
        "hooks of others were made anew"
    )
    return pictures


@functools.cache
def plain_life(family: str, files: Files, first: str) -> list[Tensor]:
    return life(fresh(family), files, family, lambda pipe: None, first)


CASES = [("sd", name) for name in PLACEMENTS] + [("flux", name) for name in ("sequential", "group, leaf")]


@pytest.mark.parametrize("first", ["placed", "loaded"])
@pytest.mark.parametrize(("family", "placement"), CASES)
def test_the_pictures_are_those_of_a_pipeline_that_stays_where_it_is(
    family: str, placement: str, first: str, files: Files, tmp_path: Path
) -> None:
    place = PLACEMENTS[placement]
    plain = plain_life(family, files, first)
    placed = life(fresh(family), files, family, lambda pipe: place(pipe, tmp_path), first)
    for got, expected in zip(placed, plain, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "placement", ["model offload", "group, leaf", "group, leaf, by stream", "device map"]
)
def test_what_was_fused_before_is_drawn_fused(placement: str, files: Files, tmp_path: Path) -> None:
    pair = [fresh("sd"), fresh("sd")]
    for pipe in pair:
        pipe.load_lora_weights(files.get("sd"), adapter_name="a")
        pipe.fuse_lora(lora_scale=0.7)
    PLACEMENTS[placement](pair[0], tmp_path)
    assert torch.equal(oracle.drawn(pair[0]), oracle.drawn(pair[1]))
    assert torch.equal(oracle.drawn(pair[0]), oracle.drawn(pair[1]))


# --- prepared models ------------------------------------------------------------------------------------------------

NOT_HERE = ("sequential", "device map with disk")
"""Of these, the weights are on the `meta` device between calls."""


@pytest.mark.parametrize("when", ["prepared first", "placed first"])
@pytest.mark.parametrize("placement", [name for name in PLACEMENTS if name not in NOT_HERE])
def test_a_prepared_pipeline_draws_the_same_wherever_it_is_kept(
    placement: str, when: str, files: Files, tmp_path: Path
) -> None:
    def place(pipe: Any) -> None:
        if when == "prepared first":
            lorry.prepare(pipe, 4)
        PLACEMENTS[placement](pipe, tmp_path)
        if when == "placed first":
            lorry.prepare(pipe, 4)

    plain = plain_life("sd", files, "placed")
    for got, expected in zip(life(fresh("sd"), files, "sd", place, "placed"), plain, strict=True):
        check_near(got, expected, 1e-5)


@pytest.mark.parametrize("placement", NOT_HERE)
def test_what_needs_a_copy_of_a_weight_that_is_not_here_is_refused(
    placement: str, files: Files, tmp_path: Path
) -> None:
    """In a prepared model that is everything but linear layers: those have slots."""
    pipe, plain = fresh("sd"), fresh("sd")
    PLACEMENTS[placement](pipe, tmp_path)
    bare = oracle.drawn(pipe)
    lorry.prepare(pipe, 4)
    with pytest.raises(StateError, match=r"`conv_in` is offloaded.*`lorry\.prepare`"):
        pipe.load_lora_weights(files.get("sd"), adapter_name="a")
    assert not pipe.get_list_adapters()
    check_near(oracle.drawn(pipe), bare, 1e-5)
    linear = oracle.kohya(oracle.lora("sd").only("to_q", "to_v", "q_proj"))
    for one in (pipe, plain):
        one.load_lora_weights(linear, adapter_name="a")
    check_near(oracle.drawn(pipe), oracle.drawn(plain), 1e-5)


@pytest.mark.parametrize("placement", NOT_HERE)
def test_the_hooks_on_a_prepared_pipeline_come_off_whatever_was_switched_meanwhile(
    placement: str, files: Files, tmp_path: Path
) -> None:
    pipe = fresh("sd")
    bare = oracle.drawn(pipe)
    lorry.prepare(pipe, 4)
    pipe.load_lora_weights(files.get("sd"), adapter_name="a")
    PLACEMENTS[placement](pipe, tmp_path)
    pipe.disable_lora()
    check_near(oracle.drawn(pipe), bare, 1e-5)
    pipe.remove_all_hooks()
    pipe.unload_lora_weights()
    assert torch.equal(oracle.drawn(pipe), bare)


# --- groups on disk -------------------------------------------------------------------------------------------------


def groups_on_disk(pipe: Any, folder: Path, kind: str) -> None:
    for number, model in enumerate(models_of(pipe)):
        blocks: dict[str, Any] = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        place = str(folder / str(number))
        apply_group_offloading(model, CPU, CPU, offload_type=kind, offload_to_disk_path=place, **blocks)


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_groups_on_disk_draw_what_was_loaded_before_and_refuse_every_change(
    kind: str, files: Files, tmp_path: Path
) -> None:
    pipe, plain = fresh("sd"), fresh("sd")
    for one in (pipe, plain):
        one.load_lora_weights(files.get("sd", "a"), adapter_name="a")
        one.set_adapters("a", 0.5)
    groups_on_disk(pipe, tmp_path, kind)
    expected = oracle.drawn(plain)
    check_near(oracle.drawn(pipe), expected, 1e-5)
    scaled = {oracle.scale_argument(pipe): {"scale": 0.5}}
    changes: list[Callable[[], object]] = [
        lambda: pipe.load_lora_weights(files.get("sd", "b"), adapter_name="b"),
        lambda: pipe.set_adapters("a", 0.75),
        pipe.disable_lora,
        pipe.fuse_lora,
        lambda: pipe.delete_adapters("a"),
        pipe.unload_lora_weights,
        lambda: lorry.prepare(pipe, 4),
        lambda: oracle.drawn(pipe, **scaled),
    ]
    for change in changes:
        with pytest.raises(StateError, match=r"offloaded to disk in groups.*put it on again"):
            change()
        assert pipe.get_list_adapters() == plain.get_list_adapters()
        check_near(oracle.drawn(pipe), expected, 1e-5)


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_an_adapter_for_a_pipeline_with_groups_on_disk_is_refused(
    kind: str, files: Files, tmp_path: Path
) -> None:
    pipe = fresh("sd")
    groups_on_disk(pipe, tmp_path, kind)
    bare = oracle.drawn(pipe)
    with pytest.raises(StateError, match="offloaded to disk in groups"):
        pipe.load_lora_weights(files.get("sd"), adapter_name="a")
    assert not pipe.get_list_adapters()
    check_near(oracle.drawn(pipe), bare, 1e-5)
