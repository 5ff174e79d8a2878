"""Overlaps from decompositions, held against full matrices in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorry.adapters.matrices import dense_of
from lorry.adapters.overlaps import overlap
from lorry.algebra import LowRank


def pair(rank: int, seed: int, out: int = 24, into: int = 36) -> LowRank:
    random = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(rank, into, generator=random), torch.randn(out, rank, generator=random), 0.5 + seed
    )


def share(of: Tensor, basis_out: Tensor | None, basis_in: Tensor | None) -> float:
    """The share of energy of a matrix within spaces, by projectors."""
    kept = of
    if basis_out is not None:
        kept = basis_out @ torch.linalg.pinv(basis_out) @ kept
    if basis_in is not None:
        kept = kept @ torch.linalg.pinv(basis_in) @ basis_in
    return float((kept.norm() / of.norm()) ** 2)


def test_every_number_is_that_of_the_full_matrices() -> None:
    one, two = pair(3, 1), pair(5, 2)
    two = LowRank(torch.cat([two.down[:4], one.down[:1]]), torch.cat([two.up[:, :4], one.up[:, :1]], 1), 0.8)
    found = overlap(one, two)
    a, b = dense_of(one).double(), dense_of(two).double()
    assert found.norms == pytest.approx((float(a.norm()), float(b.norm())), rel=1e-5)
    assert found.cosine == pytest.approx(float((a * b).sum() / a.norm() / b.norm()), abs=1e-5)
    ups, downs = [p.up.double() for p in (one, two)], [p.down.double() for p in (one, two)]
    assert found.reads == pytest.approx((share(a, None, downs[1]) + share(b, None, downs[0])) / 2, abs=1e-4)
    assert found.writes == pytest.approx((share(a, ups[1], None) + share(b, ups[0], None)) / 2, abs=1e-4)
    assert found.shared == pytest.approx(
        (share(a, ups[1], downs[1]) + share(b, ups[0], downs[0])) / 2, abs=1e-4
    )
    assert found.angles_in[0] == pytest.approx(0, abs=0.1)
    assert found.angles_out[0] == pytest.approx(0, abs=0.1)
    assert (len(found.angles_in), found.angles_in[1] > 20) == (3, True)


def test_a_delta_and_its_opposite_and_a_full_one() -> None:
    one = pair(3, 1)
    opposite = LowRank(one.down, -one.up, one.scale)
    assert overlap(one, opposite).cosine == pytest.approx(-1, abs=1e-5)
    full = overlap(one, dense_of(one))
    assert (full.cosine, full.shared) == (pytest.approx(1, abs=0.01), pytest.approx(1, abs=0.01))


def test_random_deltas_share_what_chance_gives() -> None:
    found = [overlap(pair(4, seed, 60, 80), pair(4, seed + 100, 60, 80)) for seed in range(20)]
    shared = sum(o.shared for o in found) / len(found)
    assert shared == pytest.approx(found[0].chance, rel=0.5)
    assert max(abs(o.cosine) for o in found) < 0.1


def test_deltas_that_read_other_inputs_share_nothing() -> None:
    one, two = pair(3, 1), pair(3, 2)
    left = LowRank(torch.cat([one.down[:, :18], torch.zeros(3, 18)], 1), one.up, 1.0)
    right = LowRank(torch.cat([torch.zeros(3, 18), two.down[:, 18:]], 1), one.up, 1.0)
    found = overlap(left, right)
    assert (found.reads, found.shared, found.cosine) == pytest.approx((0, 0, 0), abs=1e-9)
    assert found.writes == pytest.approx(1, abs=1e-5)
