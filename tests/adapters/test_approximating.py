"""Full differences as fewer numbers."""

from __future__ import annotations

import pytest
import torch

from lorry.adapters.approximating import divisor_up_to, nearest_kronecker, svd_to_energy


@pytest.mark.parametrize("shape", [(24, 36), (12, 8, 3, 3)])
def test_a_kronecker_product_is_found_exactly(shape: tuple[int, ...]) -> None:
    one, two = torch.randn(4, 4), torch.randn(shape[0] // 4, shape[1] // 4, *shape[2:])
    whole = torch.kron(one, two.flatten(1)).reshape(shape)
    got = nearest_kronecker(whole, 4)
    assert got.shape == shape
    torch.testing.assert_close(got.weight(), whole, rtol=0, atol=1e-4)
    low = nearest_kronecker(whole, 4, rank=1)
    assert low.rank == 1
    assert low.shape == shape
    assert 0.01 < float((low.weight() - whole).norm() / whole.norm()) < 1


def test_the_nearest_one_is_no_worse_than_others_near_it() -> None:
    matrix = torch.randn(12, 8)
    got = nearest_kronecker(matrix, 4)
    least = float((got.weight() - matrix).norm())
    assert got.w1 is not None
    assert got.w2 is not None
    for seed in range(20):
        noise = torch.Generator().manual_seed(seed)
        near = torch.kron(
            got.w1 + 0.05 * torch.randn(got.w1.shape, generator=noise),
            got.w2 + 0.05 * torch.randn(got.w2.shape, generator=noise),
        )
        assert float((near - matrix).norm()) > least


def test_divisors() -> None:
    assert [divisor_up_to(*pair) for pair in ((320, 8), (320, 12), (7, 6), (4, 16))] == [8, 10, 1, 4]


@pytest.mark.parametrize("steepness", [0.7, 0.97, 1.0])
@pytest.mark.parametrize("energy", [0.8, 0.99])
def test_the_fewest_terms_that_keep_a_share_are_found(steepness: float, energy: float) -> None:
    torch.manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn(size, 160))[0] for size in (200, 160))
    matrix = left @ torch.diag(steepness ** torch.arange(160.0)) @ right.T
    exact = torch.linalg.svdvals(matrix).double().square()
    needed = int(((exact.cumsum(0) / exact.sum()) < energy).sum()) + 1
    got = svd_to_energy(matrix, energy)
    assert needed <= got.rank <= needed + 1
    assert float(got.s.double().square().sum() / exact.sum()) >= energy - 1e-6
