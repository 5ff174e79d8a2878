"""TIES, DARE, magnitude pruning and orthogonalising, beside PEFT's and beside the formula."""

from __future__ import annotations

import pytest
import torch
from peft.utils import merge_utils
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lorry.adapters.matrices import dense_of
from lorry.adapters.mixing import Method, _voted, dropped, largest, mix, orthogonalised
from lorry.algebra import LowRank

THEIRS = {
    Method.TIES: merge_utils.ties,
    Method.DARE: merge_utils.dare_linear,
    Method.DARE_TIES: merge_utils.dare_ties,
    Method.MAGNITUDE: merge_utils.magnitude_prune,
}


def pair(out: int, into: int, rank: int, scale: float = 0.5) -> LowRank:
    return LowRank(torch.randn(rank, into), torch.randn(out, rank), scale)


def mixed(
    method: Method, matrices: list[Tensor] | list[LowRank], factors: list[float], seed: int = 3
) -> Tensor:
    return dense_of(mix(method, matrices, factors, 0.4, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("method", THEIRS)
def test_the_result_is_that_of_peft_on_the_full_matrices(method: Method) -> None:
    matrices, factors = [torch.randn(12, 20) for _ in range(3)], [0.7, 1.3, 0.5]
    torch.manual_seed(3)
    theirs = THEIRS[method](matrices, torch.tensor(factors), 0.4)
    torch.testing.assert_close(mixed(method, matrices, factors), theirs)
    plain = torch.stack([factor * matrix for factor, matrix in zip(factors, matrices, strict=True)]).sum(0)
    assert not torch.allclose(theirs, plain)


def test_a_seed_gives_the_same_drops_and_another_one_others() -> None:
    matrices = [torch.randn(12, 20) for _ in range(2)]
    first, again, other = (mixed(Method.DARE, matrices, [1.0, 1.0], seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_dropping_keeps_the_mean() -> None:
    got = dropped(torch.ones(400, 400), 0.25, torch.Generator().manual_seed(0))
    assert set(got.unique().tolist()) == {0.0, 4.0}
    assert abs(float(got.mean()) - 1) < 0.02


def test_the_largest_share_is_kept_and_a_share_of_1_is_everything() -> None:
    tensor = torch.tensor([[1.0, -5.0], [3.0, -2.0]])
    assert largest(tensor, 0.5).tolist() == [[0.0, -5.0], [3.0, 0.0]]
    assert largest(tensor, 1.0) is tensor
    assert largest(tensor, 0.1).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("full", [False, True])
def test_orthogonalised_deltas_share_neither_rows_nor_columns(full: bool) -> None:
    pairs = [pair(24, 36, 4), pair(24, 36, 3, 2.0), pair(24, 36, 2)]
    given = [dense_of(p) for p in pairs] if full else pairs
    first, *others = (dense_of(m).double() for m in orthogonalised(given))
    torch.testing.assert_close(first, dense_of(pairs[0]).double())
    for number, one in enumerate(others):
        for earlier in [first, *others[:number]]:
            size = one.norm() * earlier.norm()
            assert (one @ earlier.T).norm() < 1e-5 * size
            assert (one.T @ earlier).norm() < 1e-5 * size
        assert one.norm() > 0.5 * dense_of(pairs[number + 1]).norm()


def test_orthogonalising_against_itself_leaves_nothing_of_the_second() -> None:
    one = pair(24, 36, 4)
    _, second = orthogonalised([one, one])
    assert float(dense_of(second).norm()) < 1e-5 * float(dense_of(one).norm())


def test_a_vote_of_matrices_on_a_gpu_is_held_there() -> None:
    with FakeTensorMode():
        assert _voted(torch.zeros(2, 3, 4, device="cuda"), [1.0, 0.5]).device == torch.device("cuda:0")
