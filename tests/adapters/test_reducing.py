"""Cutting deltas down to ranks, and choosing the ranks."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from lorry.adapters.reducing import find_reducible, ranks_by_energy, ranks_by_size, reduced
from lorry.algebra import (
    Delta,
    DoraDelta,
    FullDelta,
    Ia3Delta,
    LohaDelta,
    LokrDelta,
    LoraDelta,
    PartsDelta,
)


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape)


REDUCIBLE: dict[str, Delta] = {
    "LoRA": LoraDelta(rand(6, 36), rand(24, 6), alpha=3.0),
    "LoCon": LoraDelta(rand(6, 4, 3, 3), rand(24, 6, 1, 1), alpha=3.0),
    "LoCon with a core": LoraDelta(rand(6, 4, 1, 1), rand(24, 6, 1, 1), rand(6, 6, 3, 3)),
    "LoHa": LohaDelta(rand(24, 3), rand(3, 36), rand(24, 3), rand(3, 36), alpha=1.0),
    "LoKr": LokrDelta(w1=rand(2, 3), w2=rand(12, 12)),
    "full": FullDelta(rand(24, 36)),
    "full, sketched": FullDelta(rand(120, 160) @ torch.diag(0.7 ** torch.arange(160.0))),
}


@pytest.mark.parametrize("name", REDUCIBLE)
def test_the_cut_has_the_least_error_that_a_rank_allows(name: str) -> None:
    delta = REDUCIBLE[name]
    got = reduced(delta, 3)
    assert isinstance(got, LoraDelta)
    assert (got.rank, got.rank_scale, got.shape) == (3, 1.0, delta.shape)
    full = delta.weight(dtype=torch.float64)
    least = torch.linalg.svdvals(full.flatten(1))[3:].norm()
    error = (full - got.weight(dtype=torch.float64)).norm()
    torch.testing.assert_close(error, least, rtol=1e-4, atol=1e-5)


def test_dtypes_are_kept_unless_another_is_asked_for() -> None:
    delta = LoraDelta(rand(6, 36).half(), rand(24, 6).half())
    assert [
        reduced(delta, 2).tensors()["up"].dtype,
        reduced(delta, 2, torch.bfloat16).tensors()["up"].dtype,
    ] == [
        torch.float16,
        torch.bfloat16,
    ]


@pytest.mark.parametrize(
    "delta",
    [Ia3Delta(rand(24, 1)), FullDelta(rand(24)), PartsDelta(None, FullDelta(rand(24)))],
    ids=["base", "norm", "bias"],
)
def test_what_has_no_rank_to_cut_stays_as_it_is(delta: Delta) -> None:
    assert find_reducible(delta) is None
    assert reduced(delta, 1).tensors() == delta.tensors()


def test_a_small_rank_is_not_rewritten() -> None:
    delta = REDUCIBLE["LoRA"]
    assert reduced(delta, 6) is delta


def test_a_dora_keeps_its_magnitude_and_a_bias_its_place() -> None:
    dora = DoraDelta(REDUCIBLE["LoRA"], rand(24))
    got = reduced(PartsDelta(dora, FullDelta(rand(24))), 2)
    assert isinstance(got, PartsDelta)
    assert isinstance(got.on_weight, DoraDelta)
    assert got.on_weight.magnitude is dora.magnitude
    assert got.on_weight.inner.rank == 2


def test_ranks_by_energy_are_each_deltas_own() -> None:
    spectra = {"steep": torch.tensor([10.0, 1.0, 0.1]), "flat": torch.tensor([1.0, 1.0, 1.0])}
    assert ranks_by_energy(spectra, 0.98) == {"steep": 1, "flat": 3}


def test_ranks_by_size_keep_the_most_energy_that_fits() -> None:
    spectra = {
        "a": torch.tensor([4.0, 2.0, 1.0]),
        "b": torch.tensor([5.0, 0.5]),
        "c": torch.tensor([3.0, 2.9, 0.2]),
    }
    costs = {"a": 3, "b": 1, "c": 2}
    for budget in (6, 8, 9, 11, 13, 30):
        got = ranks_by_size(spectra, costs, budget)

        def kept(ranks: dict[str, int]) -> float:
            return sum(float(spectra[key][:rank].square().sum()) for key, rank in ranks.items())

        def cost(ranks: dict[str, int]) -> int:
            return sum(costs[key] * rank for key, rank in ranks.items())

        choices = itertools.product(*(range(1, len(s) + 1) for s in spectra.values()))
        fitting = [r for ranks in choices if cost(r := dict(zip(spectra, ranks, strict=True))) <= budget]
        assert cost(got) <= budget
        assert kept(got) == pytest.approx(max(map(kept, fitting)), rel=0.03)


def test_every_delta_gets_one_rank_whatever_the_budget() -> None:
    assert ranks_by_size({"a": torch.ones(3)}, {"a": 100}, 1) == {"a": 1}
