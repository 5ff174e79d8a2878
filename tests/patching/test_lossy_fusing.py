"""Fusing into quantized weights by quantizing again: only when asked for, measured, and taken back bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lorry.algebra import Delta
from lorry.errors import FuseError
from lorry.patching import AdapterState, FuseLoss, find_state
from lorry.patching.layer_kinds import plain_parameter
from models import random_delta
from patching.quantized import LAYERS, OWN_ARITHMETIC
from patching.test_quantized import called, dora, inputs, lora, model_of
from small import changing, check_near, put
from snapshots import check_same, snapshot

K_QUANTS = [f"GGUF {name}" for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")]
KINDS = [kind for kind in LAYERS if kind not in K_QUANTS]
STEP = {
    "bitsandbytes NF4": 0.2,
    "bitsandbytes FP4": 0.25,
    "torchao int4": 0.15,
    "quanto int4": 0.15,
    "GGUF Q4_0": 0.15,
    "GGUF Q5_1": 0.05,
    "torchao float8": 0.05,
    "quanto float8": 0.05,
    "float8 by layerwise casting": 0.05,
}
"""How far quantizing may move a weight, as a part of it; 0.02 for eight bits in even steps."""


def state_of(model: nn.Module) -> AdapterState:
    state = find_state(model)
    assert state is not None
    return state


def fused(model: nn.Module, **kwargs: object) -> dict[str, FuseLoss]:
    with changing(model) as (state, undo):
        return state.fuse(undo, lossy=True, **kwargs)  # type: ignore[arg-type]


def weight_of(model: nn.Sequential) -> Tensor:
    return plain_parameter("0", model[0], "weight").float()


def strong() -> dict[str, Delta]:
    """A LoRA about as large as the weight, of which rounding cannot take much."""
    return {"0": random_delta((64, 256), size=1.0)}


@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_fused_weight_is_the_sum_up_to_what_is_said_to_be_lost(kind: str, called_before: bool) -> None:
    model = model_of(kind)
    if called_before:  # some layers pack their weight anew at their first call
        called(model)
    base, delta = weight_of(model), strong()["0"].weight()
    put(model, "toy", 0.5, deltas=strong())
    lost = fused(model)
    assert lost.keys() == {"0.weight"}
    loss, got = lost["0.weight"], weight_of(model)
    exact = base + 0.5 * delta
    assert loss.error == pytest.approx(float((got - exact).norm() / exact.norm()), rel=1e-3, abs=1e-7)
    assert loss.noise == pytest.approx(loss.error * float(exact.norm() / (0.5 * delta).norm()), rel=1e-3)
    survives = float(((got - base) * delta).sum() / (0.5 * delta.square().sum()))
    assert loss.survives == pytest.approx(survives, abs=1e-3)
    assert 0 < loss.error < STEP.get(kind, 0.02)
    assert loss.survives == pytest.approx(1.0, abs=0.1)
    bias = model.get_parameter("0.bias").detach().float()
    check_near(called(model), inputs() @ got.T + bias, 1e-2 if kind in OWN_ARITHMETIC else 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_too_small_for_the_steps_of_the_weight_is_said_not_to_arrive(kind: str) -> None:
    model = model_of(kind)
    put(model, deltas={"0": random_delta((64, 256), size=1e-4)})
    (loss,) = fused(model).values()
    assert loss.noise > 0.9
    assert "% of it arrives" in str(loss)


@pytest.mark.parametrize("called_between", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_unfusing_brings_every_bit_back(kind: str, called_between: bool) -> None:
    model = model_of(kind)
    called(model)
    put(model, deltas=lora())
    out, before = called(model), snapshot(model)
    fused(model)
    if called_between:
        called(model)
    with changing(model) as (state, undo):
        state.unfuse(undo)
    assert torch.equal(called(model), out)
    check_same(
        {name: value for name, value in snapshot(model).items() if not name.startswith("state:")},
        {name: value for name, value in before.items() if not name.startswith("state:")},
    )


@pytest.mark.parametrize("kind", KINDS)
def test_fusing_twice_starts_from_the_original(kind: str) -> None:
    model, other = model_of(kind), model_of(kind)
    called(model)
    called(other)
    deltas = {name: {"0": random_delta((64, 256), seed, size=1.0)} for seed, name in enumerate("ab")}
    for one in (model, other):
        for name in "ab":
            put(one, name, 0.5, deltas=deltas[name])
    fused(other)
    fused(model, names=["a"])
    called(model)
    fused(model, names=["b"])
    assert torch.equal(called(model), called(other))
    with changing(model) as (state, undo):
        state.unfuse(undo, ["a"])
    alone = model_of(kind)
    called(alone)
    put(alone, "b", 0.5, deltas=deltas["b"])
    fused(alone)
    with changing(model) as (state, undo):
        state.set_active({}, undo)
    assert torch.equal(called(model), called(alone))


@pytest.mark.parametrize("kind", KINDS)
def test_disabling_and_enabling_swaps_the_original_and_the_fused_weight(kind: str) -> None:
    model = model_of(kind)
    bare = called(model)
    put(model, deltas=strong())
    fused(model)
    out = called(model)
    assert not torch.equal(out, bare)
    for _ in range(2):
        with changing(model) as (state, undo):
            state.set_enabled(False, undo)
        assert torch.equal(called(model), bare)
        with changing(model) as (state, undo):
            state.set_enabled(True, undo)
        assert torch.equal(called(model), out)
    with changing(model) as (state, undo):
        state.clear(undo)
    assert torch.equal(called(model), bare)


@pytest.mark.parametrize("kind", KINDS)
def test_a_family_that_needs_the_weight_sees_the_original(kind: str) -> None:
    model = model_of(kind)
    called(model)
    base = weight_of(model)
    put(model, "toy", deltas=strong())
    fused(model)
    put(model, "turned", deltas={"0": dora()})
    weight = weight_of(model) + dora().weight(base)
    check_near(called(model), inputs() @ weight.T + model.get_parameter("0.bias").detach().float(), 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_fails_while_fusing_changes_nothing(kind: str) -> None:
    model = model_of(kind)
    called(model)
    put(model, deltas=lora())
    out, before = called(model), snapshot(model)

    def fail() -> None:
        with changing(model) as (state, undo):
            state.fuse(undo, lossy=True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        fail()
    check_same(snapshot(model), before)
    assert torch.equal(called(model), out)
    check_same(snapshot(model), before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_refusal_names_the_argument(kind: str) -> None:
    model = model_of(kind)
    put(model, deltas=lora())
    with pytest.raises(FuseError, match=r"lossy=True.*fuse_support"), changing(model) as (state, undo):
        state.fuse(undo)


@pytest.mark.parametrize("kind", K_QUANTS)
def test_what_no_library_can_quantize_again_is_refused_asked_or_not(kind: str) -> None:
    model = model_of(kind)
    put(model, deltas=lora())
    out, before = called(model), snapshot(model)
    for lossy in (False, True):
        with pytest.raises(FuseError) as caught, changing(model) as (state, undo):
            state.fuse(undo, lossy=lossy)
        assert "lossy" not in str(caught.value)
    check_same(snapshot(model), before)
    assert torch.equal(called(model), out)


@pytest.mark.parametrize("kind", KINDS)
def test_without_originals_there_is_no_way_back_and_no_second_copy(kind: str) -> None:
    model = model_of(kind)
    put(model, deltas=lora())
    fused(model, originals="none")
    out = called(model)
    for operation in ("unfuse", "clear"):
        with pytest.raises(FuseError, match="no saved bits"), changing(model) as (state, undo):
            getattr(state, operation)(undo)
    assert torch.equal(called(model), out)
    with changing(model) as (state, undo):
        state.clear(undo, keep_fused=True)
    assert find_state(model) is None
    assert torch.equal(called(model), out)


def test_packed_originals_stay_where_the_weights_are() -> None:
    model = model_of("bitsandbytes NF4")
    put(model, deltas=lora())
    before = snapshot(model)
    with pytest.raises(FuseError, match=r'quantized weights stay beside.*originals="device"'):
        fused(model, originals="cpu")
    check_same(snapshot(model), before)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith(("bitsandbytes", "torchao"))])
def test_a_copy_of_a_fused_model_has_originals_of_its_own(kind: str) -> None:
    model = model_of(kind)
    bare = called(model)
    put(model, deltas=lora())
    fused(model)
    out = called(model)
    twin = copy.deepcopy(model)
    with changing(twin) as (state, undo):
        state.clear(undo)
    assert torch.equal(called(twin), bare)
    assert torch.equal(called(model), out)


@pytest.mark.parametrize("kind", KINDS)
def test_the_originals_count_among_what_is_held(kind: str) -> None:
    model = model_of(kind)
    put(model, deltas=lora())
    before = state_of(model).nbytes
    fused(model)
    assert before < state_of(model).nbytes <= before + 4 * 64 * 256
