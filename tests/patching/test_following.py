"""Adapters go where their layers go. The meta device stands for a second one: this machine may have no other."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import Tensor, nn

from lorry.algebra import Delta, FullDelta, PartsDelta
from lorry.patching import AdapterState, Strength, find_state, following, resident
from lorry.patching.following import bring, device_of
from models import random_deltas
from small import PATHS, Small, changing, check_near, put, small_input, state_of
from snapshots import snapshot

META = torch.device("meta")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def meta_is_a_device_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "NOWHERE", ())


def devices(state: AdapterState, name: str, path: str) -> set[str]:
    return {tensor.device.type for tensor in state.adapters[name].deltas[path].tensors().values()}


def two(model: nn.Module) -> None:
    put(model, "a", 0.5)
    put(model, "b", 0.25, seed=1)


def held(state: AdapterState) -> list[Tensor]:
    """Every tensor that the state holds."""
    tensors = [*state._sides.tensors(), *state._weights.tensors()]
    return tensors + [tensor for resident in state.adapters.values() for tensor in resident.tensors()]


def test_loaded_adapters_go_where_the_model_goes_active_or_not() -> None:
    model = Small()
    two(model)
    put(model, "c", seed=2)
    with changing(model) as (state, undo):
        state.set_active({"a": state.strengths["a"]}, undo)
        state.set_active({"a": state.strengths["a"], "b": state.strengths["b"]}, undo)
    model.to(META)
    assert {tensor.device.type for tensor in held(state_of(model))} == {"meta"}


def test_a_block_takes_its_own_part_of_the_adapters_along() -> None:
    model = Small()
    two(model)
    model.block.to(META)
    state = state_of(model)
    for path in PATHS:
        assert devices(state, "a", path) == {"meta" if path.startswith("block") else "cpu"}, path


def test_the_saved_originals_of_fused_weights_go_along_but_those_kept_on_the_cpu() -> None:
    for keep, expected in (("device", "meta"), ("cpu", "cpu")):
        model = Small()
        two(model)
        with changing(model) as (state, undo):
            state.fuse(undo, originals=keep)  # pyright: ignore[reportArgumentType]
        model.to(META)
        assert {tensor.device.type for tensor in state_of(model)._weights.tensors()} == {expected}


def test_a_parked_adapter_stays_and_follows_again_when_it_has_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Small()
    two(model)
    with changing(model) as (state, undo):
        state.set_active({}, undo)
        state.park(["a"], CPU, undo)
    model.to(META)
    assert devices(state, "a", "conv") == {"cpu"}
    assert devices(state, "b", "conv") == {"meta"}
    monkeypatch.setattr(resident, "module_device", device_of)  # which takes meta for offloaded
    with changing(model) as (state, undo):
        state.park(["a"], META, undo)
    assert state.adapters["a"].parked is None
    with changing(model) as (state, undo):
        state.park(["a"], META, undo)
    assert state.adapters["a"].parked == META


def test_nothing_follows_to_where_numbers_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model = Small()
    two(model)
    model.to(META)
    assert devices(state_of(model), "a", "conv") == {"cpu"}


def test_copies_of_a_model_move_their_own_adapters() -> None:
    model = Small()
    two(model)
    twin = copy.deepcopy(model)
    twin.to(META)
    assert devices(state_of(twin), "a", "conv") == {"meta"}
    assert devices(state_of(model), "a", "conv") == {"cpu"}
    check_near(model(small_input()), copy.deepcopy(model)(small_input()), 0.0)


def test_what_a_module_tells_keeps_no_model_alive() -> None:
    model = Small()
    two(model)
    gc.collect()
    gc.disable()
    try:
        before = sum(type(thing) is AdapterState for thing in gc.get_objects())
        del model
        assert sum(type(thing) is AdapterState for thing in gc.get_objects()) == before - 1
    finally:
        gc.enable()


def test_unloading_leaves_nothing_that_tells() -> None:
    model = Small()
    two(model)
    with changing(model) as (state, undo):
        state.clear(undo)
    assert find_state(model) is None
    assert not any("lorry_home" in vars(module) for module in model.modules())


def test_a_tensor_is_brought_in_place() -> None:
    tensor = torch.ones(3)
    holder = [tensor]
    bring(tensor, META)
    assert holder[0].device == META
    bring(tensor, META)
    assert holder[0] is tensor


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_strengths_set_after_a_cast_there_and_back_are_the_ones_that_act(dtype: torch.dtype) -> None:
    model, x = Small(), small_input()
    two(model)
    bits = {name: tensor.clone() for name, tensor in model.named_parameters()}
    model.to(dtype).to(torch.float32)
    for name, tensor in model.named_parameters():
        tensor.data = bits[name]
    with changing(model) as (state, undo):
        state.set_active({"a": state.strengths["b"], "b": state.strengths["a"]}, undo)
    fresh = Small()
    two(fresh)
    with changing(fresh) as (state, undo):
        state.set_active({"a": state.strengths["b"], "b": state.strengths["a"]}, undo)
    check_near(model(x), fresh(x), 1e-6)


def mixed(model: nn.Module) -> dict[str, Delta]:
    """A LoRA, one beside a bias, and a family without factors: all three ways of acting."""
    deltas = random_deltas(model, 3, ("conv", "grouped", "to_q"), rank=2)
    deltas["block.to_q"] = PartsDelta(deltas["block.to_q"], FullDelta(torch.randn(5)))
    return {**deltas, "out": FullDelta(torch.randn(7, 5))}


@pytest.mark.parametrize("room", [None, 4, 0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_adapter_is_not_rounded_by_a_cast_of_its_model_there_and_back(
    dtype: torch.dtype, room: int | None
) -> None:
    model, fresh, x = Small().to(dtype).float(), Small().to(dtype).float(), small_input()
    deltas = mixed(model)
    for one in (model, fresh):
        put(one, "a", 0.5, deltas=deltas)
        put(one, "b", -0.25, seed=1)
        if room is not None:
            with changing(one) as (state, undo):
                state.prepare(room, undo)
    expected = fresh(x)
    model.to(dtype).to(torch.float32)
    check_near(model(x), expected, 0.0)
    model.to(dtype)
    half = Small().to(dtype)
    put(half, "a", 0.5, deltas=deltas)
    put(half, "b", -0.25, seed=1)
    if room is not None:
        with changing(half) as (state, undo):
            state.prepare(room, undo)
    check_near(model(x.to(dtype)), half(x.to(dtype)), 0.0)


def test_an_adapter_that_was_loaded_on_a_half_precision_model_has_its_own_bits_when_that_is_cast_up() -> None:
    model, fresh, x = Small().half(), Small().half().float(), small_input()
    for one in (model, fresh):
        put(one, "a", 0.5)
    check_near(model.float()(x), fresh(x), 0.0)


@pytest.mark.parametrize("idle", [False, True], ids=["", "idle"])
def test_strengths_set_after_the_memory_was_shared_with_other_processes_are_the_ones_that_act(
    idle: bool,
) -> None:
    model, plain = Small(), Small()
    for one in (model, plain):
        put(one, "a", 0.5)
    for value in (0.25, 2.0):
        if idle:
            with changing(model) as (state, undo):
                state.set_active({}, undo)
        model.share_memory()  # as torch.multiprocessing does by itself with what it sends
        for one in (model, plain):
            with changing(one) as (state, undo):
                state.set_active({"a": Strength(value)}, undo)
        check_near(model(small_input()), plain(small_input()), 0.0)


@pytest.mark.parametrize("room", [None, 4, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("assign", [False, True], ids=["", "assigned"])
def test_weights_that_a_state_dict_has_brought_are_the_ones_that_adapters_are_added_to(
    assign: bool, dtype: torch.dtype, room: int | None
) -> None:
    model, bringing = Small(), Small(1).to(dtype)
    fresh = copy.deepcopy(bringing) if assign else copy.deepcopy(bringing).float()
    before, deltas, x = snapshot(model), mixed(model), small_input().to(dtype if assign else torch.float32)
    for one in (model, fresh):
        if room is not None:
            with changing(one) as (state, undo):
                state.prepare(room, undo)
        put(one, "a", 0.5, deltas=deltas)
    model.load_state_dict(bringing.state_dict(), assign=assign)
    check_near(model(x), fresh(x), 0.0)
    for one in (model, fresh):
        with changing(one) as (state, undo):
            state.set_active({"a": Strength(-1.0)}, undo)
    check_near(model(x), fresh(x), 0.0)
    with changing(model) as (state, undo):
        state.clear(undo)
    after = snapshot(model)
    for path, _ in model.named_modules():
        assert after[f"{path}:hooks"] == before[f"{path}:hooks"]
    check_near(model(x), Small(1).to(x.dtype)(x), 1e-2 if dtype != x.dtype else 0.0)
