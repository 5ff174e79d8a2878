"""Decompositions of deltas from their factors, held against dense ones in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorry.adapters.svd import (
    dense_svd,
    energies,
    factor_spectrum,
    factor_svd,
    joined,
    rank_for,
    sketch_svd,
)
from lorry.algebra import LowRank

SHAPES = [(24, 40), (40, 24), (6, 4, 3, 3), (16, 8, 1, 1)]


def pair_of(shape: tuple[int, ...], rank: int, scale: float = 0.7, seed: int = 0) -> LowRank:
    random = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(rank, *shape[1:], generator=random), torch.randn(shape[0], rank, generator=random), scale
    )


def dense(pair: LowRank) -> Tensor:
    return pair.scale * pair.up.double() @ pair.down.flatten(1).double()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 30])
def test_the_factors_decompose_as_the_full_matrix_does(shape: tuple[int, ...], rank: int) -> None:
    pair = pair_of(shape, rank)
    svd, full = factor_svd(pair, torch.float64), dense(pair)
    exact = torch.linalg.svdvals(full)[: svd.rank]
    torch.testing.assert_close(svd.s, exact, rtol=0, atol=1e-12 * float(exact[0]))
    torch.testing.assert_close(
        factor_spectrum(pair, torch.float64), svd.s, rtol=0, atol=1e-12 * float(exact[0])
    )
    torch.testing.assert_close((svd.u * svd.s) @ svd.v, full, rtol=0, atol=1e-11)
    one = torch.eye(svd.rank, dtype=torch.float64)
    torch.testing.assert_close(svd.u.T @ svd.u, one, rtol=0, atol=1e-12)
    torch.testing.assert_close(svd.v @ svd.v.T, one, rtol=0, atol=1e-12)


def test_in_float32_the_singular_values_are_within_a_millionth_of_the_largest() -> None:
    pair = pair_of((320, 640), 32)
    exact = torch.linalg.svdvals(dense(pair))[:32]
    error = (factor_svd(pair).s.double() - exact).abs().max() / exact[0]
    assert 0 < float(error) < 1e-6


def test_a_cut_is_the_best_approximation_of_its_rank() -> None:
    svd = factor_svd(pair_of((24, 40), 8), torch.float64)
    cut = svd.cut(3).pair()
    error = torch.linalg.matrix_norm(dense(cut) - (svd.u * svd.s) @ svd.v)
    torch.testing.assert_close(error, svd.s[3:].square().sum().sqrt(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_two_factors_are_of_like_size_and_keep_the_kernel(shape: tuple[int, ...]) -> None:
    svd = factor_svd(pair_of(shape, 3), torch.float64)
    pair = svd.pair(shape[1:])
    assert pair.down.shape == (3, *shape[1:])
    torch.testing.assert_close(pair.up.norm(), pair.down.norm())
    torch.testing.assert_close(dense(pair), (svd.u * svd.s) @ svd.v)


def test_joined_factors_are_the_weighted_sum_exactly() -> None:
    pairs = [pair_of((6, 4, 3, 3), 2, 0.5, 1), pair_of((6, 4, 3, 3), 5, 2.0, 2)]
    pairs = [LowRank(p.down.double(), p.up.double(), p.scale) for p in pairs]
    one = joined(pairs, [0.3, -1.5])
    assert (one.rank, one.scale) == (7, 1.0)
    torch.testing.assert_close(dense(one), 0.3 * dense(pairs[0]) - 1.5 * dense(pairs[1]), rtol=0, atol=1e-12)


def test_a_sketch_is_nearly_as_good_as_the_best_cut_and_the_same_for_the_same_seed() -> None:
    random = torch.Generator().manual_seed(0)
    matrix = torch.randn(120, 90, generator=random) @ torch.diag(0.9 ** torch.arange(90.0))
    best = dense_svd(matrix).cut(10)
    got, again = (sketch_svd(matrix, 10, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(got.u, again.u)
    errors = [float(torch.linalg.matrix_norm(matrix - (svd.u * svd.s) @ svd.v)) for svd in (best, got)]
    assert errors[0] <= errors[1] * (1 + 1e-6)
    assert errors[1] < 1.001 * errors[0]


def test_energy_is_the_share_of_squares_that_a_rank_keeps() -> None:
    spectrum = torch.tensor([3.0, 2.0, 1.0])
    torch.testing.assert_close(energies(spectrum), torch.tensor([9.0, 13.0, 14.0]).double() / 14)
    assert [rank_for(spectrum, share) for share in (0.1, 9 / 14, 0.65, 0.93, 0.99, 1.0)] == [1, 1, 2, 3, 3, 3]


def test_a_delta_of_zeros_keeps_everything_at_rank_1() -> None:
    assert rank_for(torch.zeros(4), 0.99) == 1
