"""`HraDelta` against its formula, written again as a product of reflections in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from algebra.contract import SHAPES, STRENGTHS, check_contract, check_fitting, check_formula, needs_its_base
from lorry.algebra import HraDelta
from lorry.errors import FormatError

RANK = 3


def made(shape: tuple[int, ...], **more: object) -> HraDelta:
    return HraDelta(**{"u": torch.randn(torch.Size(shape[1:]).numel(), RANK), **more})


def slow_weight(delta: HraDelta, base: Tensor) -> Tensor:
    """W times each reflection as a whole matrix, minus W."""
    weight, size = base.double().flatten(1), delta.u.shape[0]
    earlier: list[Tensor] = []
    for column in delta.u.double().unbind(1):
        for unit in earlier if delta.orthogonal else []:
            column = column - torch.dot(unit, column) / torch.dot(unit, unit) * unit
        earlier.append(column)
        reflection = torch.zeros(size, size, dtype=torch.float64)
        for i in range(size):
            for j in range(size):
                reflection[i, j] = float(i == j) - 2 * column[i] * column[j] / column.square().sum()
        weight = weight @ reflection
    return (weight - base.double().flatten(1)).reshape(base.shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_weight_is_reflected(shape: tuple[int, ...], orthogonal: bool, strength: float) -> None:
    delta, base = made(shape, orthogonal=orthogonal), torch.randn(shape)
    check_formula(delta, base, slow_weight(delta, base) * strength, strength)


def test_orthogonal_columns_are_another_product_than_those_that_are_not() -> None:
    delta, base = made((12, 8)), torch.randn(12, 8)
    assert not torch.allclose(delta.weight(base), HraDelta(delta.u, orthogonal=True).weight(base))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_keeps_what_every_family_promises(shape: tuple[int, ...]) -> None:
    base = torch.randn(shape)
    check_contract(made(shape), base)
    check_fitting(made(shape), base, [(shape[0], shape[1] + 1, *shape[2:])])
    needs_its_base(made(shape), (shape[0], shape[1] + 1, *shape[2:]))


def test_before_it_is_fitted_it_has_no_rows() -> None:
    assert made((12, 8)).shape == (-1, 8)
    assert made((12, 8)).low_rank() is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"u": torch.randn(8)}, "two axes"), ({"target_shape": (12, 9)}, "does not reflect the columns")],
)
def test_tensors_that_do_not_fit_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        made((12, 8), **wrong)
