"""Adapters on quantized layers: what the side path computes, what is copied, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lorry.algebra import Delta, DoraDelta, FullDelta, OftDelta, PartsDelta
from lorry.errors import FuseError
from lorry.patching import find_state
from lorry.patching.layer_kinds import plain_parameter
from models import random_delta
from patching.quantized import DTYPES, IN, LAYERS, OUT, OWN_ARITHMETIC
from small import changing, check_near, put
from snapshots import check_same, snapshot

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Of the largest number of the output: a few roundings of the dtype that the layer computes in."""


def model_of(kind: str, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(LAYERS[kind](dtype)).eval()


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, IN, generator=torch.Generator().manual_seed(1)).to(dtype)


def lora(seed: int = 0, rank: int = 3) -> Mapping[str, Delta]:
    return {"0": random_delta((OUT, IN), seed, rank)}


def called(model: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    with torch.no_grad():
        return model(inputs(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", LAYERS)
def test_the_side_path_adds_the_whole_delta_at_every_strength(kind: str, dtype: str) -> None:
    model, tolerance = model_of(kind, DTYPES[dtype]), TOLERANCE[DTYPES[dtype]]
    bare = called(model, DTYPES[dtype])
    delta = lora()["0"].weight()
    side = inputs(DTYPES[dtype]).float() @ delta.T
    for strength in (0.1, 0.5, 1.0):
        put(model, "toy", strength, deltas=lora())
        check_near(called(model, DTYPES[dtype]), bare.float() + strength * side, tolerance)
        with changing(model) as (state, undo):
            state.clear(undo)
        assert torch.equal(called(model, DTYPES[dtype]), bare)


def base_tolerance(kind: str) -> float:
    return 1e-2 if kind in OWN_ARITHMETIC else 1e-5


@pytest.mark.parametrize("kind", LAYERS)
def test_the_weight_that_is_read_is_the_one_that_the_layer_computes_with(kind: str) -> None:
    model = model_of(kind)
    out = called(model)  # some pack their weight anew at the first call
    weight = plain_parameter("0", model[0], "weight").float()
    check_near(out, inputs() @ weight.T + bias_of(model), base_tolerance(kind))
    assert torch.equal(called(model), out), "reading it has changed the layer"


@pytest.mark.parametrize("kind", LAYERS)
def test_the_output_is_that_of_the_dequantized_weight_and_the_float32_delta(kind: str) -> None:
    model = model_of(kind)
    called(model)
    weight = plain_parameter("0", model[0], "weight").float()
    put(model, "toy", 0.7, deltas=lora())
    exact = inputs() @ (weight + 0.7 * lora()["0"].weight()).T + bias_of(model)
    check_near(called(model), exact, base_tolerance(kind))


def bias_of(model: nn.Module) -> Tensor:
    return model.get_parameter("0.bias").detach().float()


def dora() -> Delta:
    lengths = torch.linspace(0.5, 2.0, OUT)
    return DoraDelta(random_delta((OUT, IN)), lengths)


def oft() -> Delta:
    return OftDelta(0.2 * torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(2)))


def full() -> Delta:
    return PartsDelta(FullDelta(0.1 * torch.randn(OUT, IN)), FullDelta(torch.randn(OUT)))


@pytest.mark.parametrize("make", [dora, oft, full])
@pytest.mark.parametrize("kind", LAYERS)
def test_families_that_need_the_weight_see_it_dequantized(kind: str, make: Callable[[], Delta]) -> None:
    model, delta = model_of(kind), make()
    bare = called(model)
    weight = plain_parameter("0", model[0], "weight").float()
    changed = weight + delta.weight(weight, strength=0.5)
    bias_delta = delta.part("bias")
    bias = bias_of(model) + (0 if bias_delta is None else 0.5 * bias_delta.weight())
    put(model, "toy", 0.5, deltas={"0": delta})
    check_near(called(model), inputs() @ changed.T + bias, 1e-5)
    with changing(model) as (state, undo):
        state.clear(undo)
    assert torch.equal(called(model), bare)


@pytest.mark.parametrize("kind", LAYERS)
def test_nothing_is_fused_into_packed_weights_unasked(kind: str) -> None:
    model = model_of(kind)
    put(model, "toy", deltas=lora())
    out, before = called(model), snapshot(model)
    refusal = r"`0` keeps its weight as .*without loss.*unfused"
    with pytest.raises(FuseError, match=refusal), changing(model) as (state, undo):
        state.fuse(undo)
    check_same(snapshot(model), before)
    assert torch.equal(called(model), out)


@pytest.mark.parametrize("kind", LAYERS)
def test_an_adapter_that_came_and_went_left_no_trace(kind: str) -> None:
    model = model_of(kind)
    called(model)
    before = snapshot(model)
    for deltas in (lora(), {"0": dora()}):
        put(model, "toy", deltas=deltas)
        called(model)
        with changing(model) as (state, undo):
            state.clear(undo)
    check_same(snapshot(model), before)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_state_dict_holds_the_quantized_base_alone(kind: str) -> None:
    model = model_of(kind)
    before = {key: id(value) for key, value in model.state_dict(keep_vars=True).items()}
    put(model, "toy", deltas=lora())
    after = {key: id(value) for key, value in model.state_dict(keep_vars=True).items()}
    assert after.keys() == before.keys()
    assert after["0.bias"] == before["0.bias"]


def test_several_adapters_cost_their_total_rank() -> None:
    model = model_of("bitsandbytes NF4")
    put(model, "a", 0.5, deltas=lora(0, 3))
    put(model, "b", 0.25, deltas=lora(1, 5))
    assert model[0].get_buffer("lorry_down").shape == (8, IN)
    assert model[0].get_buffer("lorry_up").shape == (OUT, 8)
    state = find_state(model)
    assert state is not None
    factors = 4 * 8 * (IN + OUT)
    assert state.nbytes <= 2 * factors + 4 * 8 + 64 * 4


class Counted(TorchDispatchMode):
    """Every operation that torch is asked for, and the shapes of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[str, list[tuple[int, ...]]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.done.append((str(func), [tuple(one.shape) for one in args if isinstance(one, Tensor)]))
        return func(*args, **(kwargs or {}))


def operations(model: nn.Module) -> list[tuple[str, list[tuple[int, ...]]]]:
    called(model)  # some layers pack their weight at the first call
    with Counted() as counted:
        called(model)
    return counted.done


@pytest.mark.parametrize("kind", LAYERS)
def test_several_adapters_do_the_operations_of_one_of_their_total_rank(kind: str) -> None:
    one, several = model_of(kind), model_of(kind)
    bare = operations(one)
    put(one, deltas=lora(0, 9))
    for number, (name, rank) in enumerate({"a": 3, "b": 5, "c": 1}.items()):
        put(several, name, 0.5, deltas=lora(number, rank))
    done = operations(one)
    assert operations(several) == done
    assert len(done) > len(bare)
