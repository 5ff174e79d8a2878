"""Patched modules under the hooks of accelerate and diffusers, put on before the patch or after it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import (
    AlignDevicesHook,
    ModelHook,
    SequentialHook,
    add_hook_to_module,
    remove_hook_from_module,
)
from diffusers.hooks import HookRegistry, apply_group_offloading, apply_layerwise_casting
from diffusers.hooks import ModelHook as DiffusersHook
from torch import Tensor, nn

from lorry.errors import FuseError
from lorry.patching import AdapterState, Strength, Undo, find_state
from models import random_deltas, tiny_unet, unet_inputs
from small import PATHS, Small, changing, check_near, put, small_input, state_of, total, with_deltas
from snapshots import check_same, snapshot

CPU = torch.device("cpu")


class Counting(ModelHook):
    """accelerate's kind of hook: counts the calls it sees."""

    calls = 0

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        Counting.calls += 1
        return args, kwargs


class DiffusersCounting(DiffusersHook):
    """diffusers' kind: counts the calls, in a forward of its own."""

    calls = 0

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        DiffusersCounting.calls += 1
        forward: Any = self.fn_ref.original_forward
        return forward(*args, **kwargs)


def hook_accelerate(model: nn.Module) -> None:
    for path in PATHS:
        add_hook_to_module(model.get_submodule(path), Counting())


def hook_accelerate_twice(model: nn.Module) -> None:
    for path in PATHS:
        add_hook_to_module(model.get_submodule(path), Counting())
        add_hook_to_module(model.get_submodule(path), Counting(), append=True)


def hook_accelerate_root(model: nn.Module) -> None:
    add_hook_to_module(model, SequentialHook(Counting(), Counting()))


def unhook_accelerate(model: nn.Module) -> None:
    remove_hook_from_module(model, recurse=True)


def hook_diffusers(model: nn.Module) -> None:
    for module in (model, *map(model.get_submodule, PATHS)):
        HookRegistry.check_if_exists_or_initialize(module).register_hook(DiffusersCounting(), "count")


def hook_diffusers_twice(model: nn.Module) -> None:
    hook_diffusers(model)
    for module in (model, *map(model.get_submodule, PATHS)):
        HookRegistry.check_if_exists_or_initialize(module).register_hook(DiffusersHook(), "other")


def unhook_diffusers(model: nn.Module) -> None:
    registry = HookRegistry.check_if_exists_or_initialize(model)
    registry.remove_hook("other")
    registry.remove_hook("count")


HOOKS: dict[str, tuple[Callable[[nn.Module], None], Callable[[nn.Module], None]]] = {
    "accelerate": (hook_accelerate, unhook_accelerate),
    "accelerate, two": (hook_accelerate_twice, unhook_accelerate),
    "accelerate, on the model": (hook_accelerate_root, unhook_accelerate),
    "diffusers": (hook_diffusers, unhook_diffusers),
    "diffusers, two": (hook_diffusers_twice, unhook_diffusers),
}

ORDERS = [
    order
    for order in itertools.permutations(("hook", "patch", "unhook", "unpatch"))
    if order.index("hook") < order.index("unhook") and order.index("patch") < order.index("unpatch")
]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize("name", HOOKS)
def test_hooks_and_patches_come_and_go_in_any_order(name: str, order: tuple[str, ...]) -> None:
    hook, unhook = HOOKS[name]
    model, x = Small(), small_input()
    bare = model(x)
    patched = Small()
    put(patched, strength=0.5)
    expected = patched(x)
    half = patched(x, cross_attention_kwargs={"scale": 0.5})

    def take_off(model: nn.Module) -> None:
        with changing(model) as (state, undo):
            state.clear(undo)

    steps: dict[str, Callable[[nn.Module], object]] = {
        "hook": hook,
        "unhook": unhook,
        "patch": lambda model: put(model, strength=0.5),
        "unpatch": take_off,
    }
    done: set[str] = set()
    for step in order:
        steps[step](model)
        done.add(step)
        Counting.calls = DiffusersCounting.calls = 0
        is_patched = "patch" in done and "unpatch" not in done
        assert torch.equal(model(x), expected if is_patched else bare), step
        assert (Counting.calls + DiffusersCounting.calls > 0) == ("hook" in done and "unhook" not in done), (
            step
        )
        if is_patched:
            assert torch.equal(model(x, cross_attention_kwargs={"scale": 0.5}), half), step
    for path, module in model.named_modules():
        check_own_forward(path, module)


def check_own_forward(path: str, module: nn.Module) -> None:
    """Raise where a module is of a made class, or its forward is not the one of its class."""
    assert "lorry_class" not in vars(type(module)), path
    left = vars(module).get("forward")
    if left is not None:  # accelerate and diffusers leave the bound method behind
        assert isinstance(left, MethodType), path
        assert left.__func__ is type(module).forward, path


@pytest.mark.parametrize("name", HOOKS)
def test_a_failed_load_leaves_hooks_as_they_were(name: str) -> None:
    model = Small()
    HOOKS[name][0](model)
    before = snapshot(model)

    def load_and_fail() -> None:
        with changing(model) as (state, undo):
            state.add("toy", {"conv": total_of(model)["conv"]}, undo)
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        load_and_fail()
    check_same(snapshot(model), before)


def total_of(model: nn.Module) -> Any:
    from models import random_deltas

    return random_deltas(model)


# --- offloading ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["hook", "patch"])
def test_sequential_offloading_works_on_patched_modules(first: str) -> None:
    model, x = Small(), small_input()
    bare = model(x)

    def offload() -> None:
        accelerate.cpu_offload(model, execution_device=CPU)

    if first == "hook":
        offload()
    deltas = put(model, strength=0.5)
    if first == "patch":
        offload()
    assert model.conv.weight.device.type == "meta"
    exact = with_deltas(Small(), total({"toy": (deltas, Strength(0.5))}))
    with torch.no_grad():
        check_near(model(x), exact(x.double()), 2e-6)
        with changing(model) as (state, undo):
            state.set_active({"toy": Strength(0.0)}, undo)
        assert torch.equal(model(x), bare)
    with pytest.raises(FuseError, match="`conv` is offloaded"), changing(model) as (state, undo):
        state.fuse(undo)
    with changing(model) as (state, undo):
        state.clear(undo)
    assert torch.equal(model(x), bare)


@pytest.mark.parametrize(
    "first",
    [
        "hook",
        "patch",
    ],
)
def test_sequential_offloading_ends_after_the_adapters_are_gone(first: str) -> None:
    model, x = Small(), small_input()
    bare = model(x)
    if first == "hook":
        accelerate.cpu_offload(model, execution_device=CPU)
    put(model, strength=0.5)
    if first == "patch":
        accelerate.cpu_offload(model, execution_device=CPU)
    with changing(model) as (state, undo):
        state.clear(undo)
    remove_hook_from_module(model, recurse=True)
    assert torch.equal(model(x), bare)
    for path, module in model.named_modules():
        check_own_forward(path, module)


@pytest.mark.parametrize(
    ("first", "enabled"),
    [
        ("hook", True),
        ("hook", False),
        ("patch", True),
        ("patch", False),
    ],
)
def test_sequential_offloading_ends_while_adapters_are_loaded(first: str, enabled: bool) -> None:
    model, x = Small(), small_input()
    bare = model(x)
    if first == "hook":
        accelerate.cpu_offload(model, execution_device=CPU)
    put(model, strength=0.5)
    if first == "patch":
        accelerate.cpu_offload(model, execution_device=CPU)
    with changing(model) as (state, undo):
        state.set_enabled(enabled, undo)
    remove_hook_from_module(model, recurse=True)
    with changing(model) as (state, undo):
        state.clear(undo)
    assert torch.equal(model(x), bare)


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("first", ["hook", "patch"])
def test_adapters_may_change_in_any_way_while_layers_are_offloaded_one_by_one(
    first: str, buffers: bool
) -> None:
    model, plain, x = Small(), Small(), small_input()

    def offload() -> None:
        accelerate.cpu_offload(model, execution_device=CPU, offload_buffers=buffers)

    def check_as_plain() -> None:
        with torch.no_grad():
            assert torch.equal(model(x), plain(x))

    if first == "hook":
        offload()
    put(model, "a", 0.5)
    put(plain, "a", 0.5)
    if first == "patch":
        offload()
    check_as_plain()
    steps: list[Callable[[AdapterState, Undo], object]] = [
        lambda state, undo: state.add("b", random_deltas(Small(), 1, ("conv", "to_q")), undo),
        lambda state, undo: state.set_active({"a": Strength(-1.0), "b": Strength(0.5)}, undo),
        lambda state, undo: state.set_active({"b": Strength(0.25)}, undo),
        lambda state, undo: state.set_enabled(False, undo),
        lambda state, undo: state.set_enabled(True, undo),
        lambda state, undo: state.set_active({"a": Strength(2.0)}, undo),
    ]
    for step in steps:
        for one in (model, plain):
            with changing(one) as (state, undo):
                step(state, undo)
        check_as_plain()
    remove_hook_from_module(model, recurse=True)
    check_as_plain()
    for one in (model, plain):
        with changing(one) as (state, undo):
            state.clear(undo)
    check_as_plain()


def test_the_device_that_a_hook_computes_on_is_the_adapters_device() -> None:
    model = Small()
    add_hook_to_module(model.conv, AlignDevicesHook(execution_device="meta"))
    put(model, ends=("conv",))
    assert model.conv.get_buffer("lorry_down").device.type == "meta"


def test_a_device_that_a_hook_names_in_another_way_is_still_that_device() -> None:
    model, named = Small(), torch.device("cpu:0")  # as "cuda" is to "cuda:0": one device, and not equal
    for path in PATHS:
        add_hook_to_module(model.get_submodule(path), AlignDevicesHook(execution_device=named))
    deltas = random_deltas(model)
    put(
        model,
        "a",
        deltas={path: delta.with_tensors(halves(delta.tensors())) for path, delta in deltas.items()},
    )
    cast = state_of(model).adapters["a"]._factors["out"]
    put(model, "b", seed=1)
    assert state_of(model).adapters["a"]._factors["out"] is cast  # made once


def halves(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("first", ["hook", "patch"])
def test_group_offloading_works_on_patched_modules(first: str, kind: str) -> None:
    model, patched = tiny_unet(), tiny_unet()
    inputs = unet_inputs(model)
    put(patched, strength=0.5)
    with torch.no_grad():
        bare, expected = model(**inputs).sample, patched(**inputs).sample

    def offload() -> None:
        apply_group_offloading(
            model, onload_device=CPU, offload_device=CPU, offload_type=kind, num_blocks_per_group=1
        )

    if first == "hook":
        offload()
    put(model, strength=0.5)
    if first == "patch":
        offload()
    with torch.no_grad():
        assert torch.equal(model(**inputs).sample, expected)
        model(**inputs, cross_attention_kwargs={"scale": 0.5})
        assert torch.equal(model(**inputs).sample, expected)
        with changing(model) as (state, undo):
            state.clear(undo)
        assert torch.equal(model(**inputs).sample, bare)
    for path, module in model.named_modules():
        assert "lorry_class" not in vars(type(module)), path


# --- weights kept in a smaller dtype ------------------------------------------------------------------------------


def cast_layerwise(model: nn.Module, storage: torch.dtype) -> None:
    apply_layerwise_casting(model, storage_dtype=storage, compute_dtype=torch.float32)


@pytest.mark.parametrize("first", ["hook", "patch"])
def test_layerwise_casting_works_on_patched_modules(first: str) -> None:
    model = Small()
    if first == "hook":
        cast_layerwise(model, torch.bfloat16)
    put(model, strength=0.5)
    if first == "patch":
        cast_layerwise(model, torch.bfloat16)
    plain = Small()
    cast_layerwise(plain, torch.bfloat16)
    with torch.no_grad():
        x = small_input()
        assert not torch.equal(model(x), plain(x))
        state = find_state(model)
        assert state is not None
        scale = model.conv.get_buffer("lorry_scale")
        assert scale.dtype == torch.float32
        with changing(model) as (state, undo):
            state.clear(undo)
        assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("first", ["hook", "patch"])
def test_layerwise_casting_rounds_the_base_and_not_the_adapter(first: str, storage: torch.dtype) -> None:
    model = Small()
    if first == "hook":
        cast_layerwise(model, storage)
    deltas = put(model, strength=0.5)
    if first == "patch":
        cast_layerwise(model, storage)
    base = Small()
    for path in PATHS:
        weight = base.get_submodule(path).get_parameter("weight")
        weight.data = weight.data.to(storage).float()
        bias = base.get_submodule(path).bias
        if isinstance(bias, Tensor):
            bias.data = bias.data.to(storage).float()
    exact = with_deltas(base, total({"toy": (deltas, Strength(0.5))}))
    with torch.no_grad():
        x = small_input()
        model(x)
        check_near(model(x), exact(x.double()), 1e-5)


def test_weights_kept_in_eight_bits_are_not_fused_into() -> None:
    model = Small()
    cast_layerwise(model, torch.float8_e4m3fn)
    put(model)
    with pytest.raises(FuseError, match=r"float8_e4m3fn .*without loss"), changing(model) as (state, undo):
        state.fuse(undo)
