"""Layers that are parts of one, or of which one holds several: on quantized bases and on bases that are offloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from lorry.algebra import BoftDelta, Delta, DoraDelta, LokrDelta, OftDelta, SharedDelta
from lorry.binding.places import Place, placed_delta, stack
from lorry.patching.layer_kinds import plain_parameter
from models import random_delta
from patching.quantized import IN, LAYERS, OUT
from patching.test_lossy_fusing import KINDS, fused
from patching.test_quantized import inputs
from small import changing, check_near, put
from snapshots import check_same, snapshot

PARTS = ("q", "k", "v")
WHOLE = (3 * OUT, IN)
PLACES = [Place(part, ((i * OUT, (i + 1) * OUT),)) for i, part in enumerate(PARTS)]


class Split(nn.Module):
    """One layer of an original checkpoint that the model keeps in three."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        for part in PARTS:
            self.add_module(part, LAYERS[kind](torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.get_submodule(part)(x) for part in PARTS], dim=-1)


def random(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dora_by_input() -> Delta:
    return DoraDelta(random_delta(WHOLE), torch.linspace(0.5, 2.0, IN), on_input=True)


def oft_across_borders() -> Delta:
    return OftDelta(0.05 * random(2, 96, 96))


def boft_across_borders() -> Delta:
    return BoftDelta(0.05 * random(1, 2, 96, 96))


def lokr() -> Delta:
    return LokrDelta(w1=random(4, 4), w2=random(48, 64, seed=3) / 50)


SPLIT: Mapping[str, Callable[[], Delta]] = {
    "DoRA by input": dora_by_input,
    "OFT": oft_across_borders,
    "BOFT": boft_across_borders,
    "LoKr": lokr,
}


def parts_of(delta: Delta) -> dict[str, Delta]:
    """A delta of the whole layer, as binding gives it to the parts."""
    found = {place.path: placed_delta(delta, place, WHOLE, PLACES) for place in PLACES}
    return {path: part for path, part in found.items() if part is not None}


def whole_of(model: nn.Module) -> Tensor:
    return torch.cat([plain_parameter(part, model.get_submodule(part), "weight").float() for part in PARTS])


def bias_of(model: nn.Module) -> Tensor:
    return torch.cat([model.get_parameter(f"{part}.bias").detach().float() for part in PARTS])


def called(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(inputs())


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("kind", LAYERS)
def test_parts_of_a_layer_see_the_whole_of_it_dequantized(kind: str, name: str) -> None:
    model, delta = Split(kind).eval(), SPLIT[name]()
    assert len(parts_of(delta)) == 3
    assert all(isinstance(part, SharedDelta) for part in parts_of(delta).values()) == (name != "LoKr")
    bare = called(model)
    before, whole = snapshot(model), whole_of(model)
    changed = whole + delta.weight(whole, strength=0.5)
    put(model, "toy", 0.5, deltas=parts_of(delta))
    check_near(called(model), inputs() @ changed.T + bias_of(model), 1e-5)
    with changing(model) as (state, undo):
        state.clear(undo)
    assert torch.equal(called(model), bare)
    check_same(snapshot(model), before)


@pytest.mark.parametrize("originals", ["device", "none"])
@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_fused_with_loss_from_the_originals_of_all(kind: str, name: str, originals: str) -> None:
    model, delta = Split(kind).eval(), SPLIT[name]()
    bare, whole = called(model), whole_of(model)
    exact = whole + delta.weight(whole, strength=0.5)
    put(model, "toy", 0.5, deltas=parts_of(delta))
    lost = fused(model, originals=originals)
    assert lost.keys() == {f"{part}.weight" for part in PARTS}
    got = whole_of(model).split(OUT)
    for part, now, wanted in zip(PARTS, got, exact.split(OUT), strict=True):
        error = float((now - wanted).norm() / wanted.norm())
        assert error == pytest.approx(lost[f"{part}.weight"].error, rel=1e-3, abs=1e-6)
    if originals == "device":
        with changing(model) as (state, undo):
            state.unfuse(undo)
            state.clear(undo)
        assert torch.equal(called(model), bare)


STACKED: Mapping[str, Callable[[int, int], Delta]] = {
    "DoRA by output": lambda rows, seed: DoraDelta(
        random_delta((rows, IN), seed), torch.linspace(0.5, 2.0, rows)
    ),
    "DoRA by input": lambda rows, seed: DoraDelta(
        random_delta((rows, IN), seed), torch.linspace(0.2, 0.4, IN), on_input=True
    ),
    "OFT": lambda rows, seed: OftDelta(0.1 * random(2, rows // 2, rows // 2, seed=seed)),
    "LoKr": lambda rows, seed: LokrDelta(
        w1=random(2, 4, seed=seed), w2=random(rows // 2, 64, seed=seed) / 50
    ),
}
SPANS = ((0, 24), (24, 48), (48, 64))


@pytest.mark.parametrize("name", STACKED)
@pytest.mark.parametrize("kind", LAYERS)
def test_deltas_of_parts_act_together_on_the_layer_that_holds_them(kind: str, name: str) -> None:
    model = nn.Sequential(LAYERS[kind](torch.float32)).eval()
    bare = called(model)
    before, whole = snapshot(model), plain_parameter("0", model[0], "weight").float()
    deltas = [(STACKED[name](b - a, seed), (a, b)) for seed, (a, b) in enumerate(SPANS)]
    changed = torch.cat([whole[a:b] + delta.weight(whole[a:b], strength=0.5) for delta, (a, b) in deltas])
    put(model, "toy", 0.5, deltas={"0": stack(deltas, (OUT, IN))})
    check_near(called(model), inputs() @ changed.T + model.get_parameter("0.bias").detach().float(), 1e-5)
    if kind in KINDS:
        (loss,) = fused(model).values()
        now = plain_parameter("0", model[0], "weight").float()
        error = float((now - changed).norm() / changed.norm())
        assert error == pytest.approx(loss.error, rel=1e-3, abs=1e-6)
        with changing(model) as (state, undo):
            state.unfuse(undo)
    with changing(model) as (state, undo):
        state.clear(undo)
    assert torch.equal(called(model), bare)
    if kind not in KINDS:
        check_same(snapshot(model), before)
