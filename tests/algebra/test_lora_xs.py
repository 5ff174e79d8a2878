"""`LoraXsDelta` against its formula, written again in float64 with torch's own singular vectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from algebra.contract import SHAPES, STRENGTHS, check_close, check_contract, check_fitting, needs_its_base
from lorry.algebra import LoraXsDelta
from lorry.errors import FormatError


def slow_weight(delta: LoraXsDelta, base: Tensor, strength: float) -> Tensor:
    left, _, right = torch.linalg.svd(base.double().flatten(1), full_matrices=False)
    total = torch.zeros(base.flatten(1).shape, dtype=torch.float64)
    for i in range(delta.core.shape[0]):
        for j in range(delta.core.shape[1]):
            signs = [max(left[:, k], key=abs).sign() for k in (i, j)]
            total += delta.core[i, j].double() * signs[0] * signs[1] * left[:, i].outer(right[j])
    return strength * 2 / 3 * total.reshape(base.shape)


def made() -> LoraXsDelta:
    return LoraXsDelta(torch.randn(3, 3), alpha=2.0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_core_stands_between_the_singular_vectors_of_the_weight(shape: tuple[int, ...]) -> None:
    delta, base = made(), torch.randn(shape)
    fitted = delta.fitted(shape)
    assert fitted is not None
    check_contract(fitted, base)
    for strength in STRENGTHS:
        expected = slow_weight(delta, base, strength)
        check_close(delta.weight(base, torch.float64, strength), expected, 1e-10)
        check_close(delta.weight(base, torch.float32, strength), expected, 1e-6)


def test_what_it_says_of_itself() -> None:
    delta = made()
    assert (delta.shape, delta.rank, delta.rank_scale, delta.low_rank()) == ((-1, -1), 3, 2 / 3, None)
    assert LoraXsDelta(delta.core).rank_scale == 1.0
    fitted = delta.fitted((12, 8))
    assert fitted is not None
    needs_its_base(fitted, (8, 12))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_once_fitted_it_fits_that_shape_only(shape: tuple[int, ...]) -> None:
    fitted = made().fitted(shape)
    assert fitted is not None
    check_fitting(fitted, torch.randn(shape), [(shape[1], shape[0], *shape[2:]), (*shape[:2], 5, 5)])


@pytest.mark.parametrize("shape", [(2, 8), (8, 2), (12,), (8, 1, 2)], ids=str)
def test_a_weight_of_fewer_singular_vectors_is_not_what_it_is_for(shape: tuple[int, ...]) -> None:
    assert made().fitted(shape) is None


def test_all_rows_can_be_had_in_another_order_and_some_of_them_cannot() -> None:
    delta, base, spans = made().fitted((12, 8)), torch.randn(12, 8), ((6, 12), (0, 6))
    assert delta is not None
    turned = delta.rows(spans)
    assert turned is not None
    torch.testing.assert_close(turned.weight(base.roll(6, 0)), delta.weight(base).roll(6, 0))
    assert delta.rows(((0, 6),)) is None


def test_a_core_must_be_square() -> None:
    with pytest.raises(
        FormatError, match=r"a LoRA-XS of core \(3, 4\) has no meaning: expected a square matrix"
    ):
        LoraXsDelta(torch.randn(3, 4))
