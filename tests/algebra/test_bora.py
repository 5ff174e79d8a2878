"""`BoraDelta` against its formula, written again in float64, one row and one column at a time."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch import Tensor

from algebra.contract import SHAPES, STRENGTHS, check_contract, check_fitting, check_formula, needs_its_base
from lorry.algebra import BoraDelta, LoraDelta, LoraXsDelta
from lorry.errors import FormatError


def made(shape: tuple[int, ...]) -> BoraDelta:
    up = torch.randn(shape[0], 3, *([1] * len(shape[2:])))
    inner = LoraDelta(torch.randn(3, *shape[1:]), up, alpha=2.0)
    return BoraDelta(inner, 1 + torch.rand(shape[0]), 1 + torch.rand(prod(shape[1:])))


def slow_weight(delta: BoraDelta, base: Tensor, strength: float) -> Tensor:
    turned = (base.double() + delta.inner.weight(base, torch.float64)).flatten(1)
    for index, row in enumerate(turned):
        length = sum(float(number) ** 2 for number in row) ** 0.5
        turned[index] = delta.row_magnitude[index].double() * row / length
    for index, column in enumerate(turned.T):
        length = sum(float(number) ** 2 for number in column) ** 0.5
        turned[:, index] = delta.column_magnitude[index].double() * column / length
    return strength * (turned.reshape(base.shape) - base.double())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_magnitudes_set_the_length_of_rows_and_then_of_columns(shape: tuple[int, ...]) -> None:
    delta, base = made(shape), torch.randn(shape)
    check_contract(delta, base)
    for strength in STRENGTHS:
        check_formula(delta, base, slow_weight(delta, base, strength), strength)


def test_rows_and_columns_of_zeros_stay_zero() -> None:
    base, delta = torch.randn(12, 8), made((12, 8))
    inner = delta.inner.weight()
    base[3], base[:, 5] = -inner[3], -inner[:, 5]
    new = base + delta.weight(base)
    assert new.isfinite().all()
    assert not new[3].any()
    assert not new[:, 5].any()


def test_what_it_says_of_itself() -> None:
    delta = made((12, 8))
    assert (delta.shape, delta.rank, delta.rank_scale, delta.low_rank()) == ((12, 8), 3, 2 / 3, None)
    assert delta.tensors().keys() == {"down", "up", "row_magnitude", "column_magnitude"}
    needs_its_base(delta, (8, 12))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_fits_its_own_shape_only(shape: tuple[int, ...]) -> None:
    refused = [(shape[1], shape[0], *shape[2:]), (shape[0], 7, *shape[2:]), (*shape[:2], 5, 5)]
    check_fitting(made(shape), torch.randn(shape), refused)


def test_all_rows_can_be_had_in_another_order_and_some_of_them_cannot() -> None:
    delta, base, spans = made((12, 8)), torch.randn(12, 8), ((6, 12), (0, 6))
    turned = delta.rows(spans)
    assert turned is not None
    torch.testing.assert_close(turned.weight(base.roll(6, 0)), delta.weight(base).roll(6, 0))
    assert delta.rows(((0, 6),)) is None
    assert delta.rows(((0, 6), (0, 6))) is None


@pytest.mark.parametrize(("rows", "columns"), [((7,), (8,)), ((12,), (7,)), ((12, 1), (8,))], ids=str)
def test_magnitudes_of_another_length_are_refused(rows: tuple[int, ...], columns: tuple[int, ...]) -> None:
    with pytest.raises(
        FormatError, match=r"a BoRA over LoRA .* has no meaning: expected vectors for \(12, 8\)"
    ):
        BoraDelta(made((12, 8)).inner, torch.ones(rows), torch.ones(columns))


def test_over_a_delta_without_a_shape_the_weight_says_whether_they_fit() -> None:
    loose = BoraDelta(LoraXsDelta(torch.randn(3, 3)), torch.ones(12), torch.ones(8))
    assert loose.fitted((12, 8)) is not None
    assert loose.fitted((8, 12)) is None
