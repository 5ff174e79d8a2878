"""`VeraDelta` against its formula, written again as slow loops in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from algebra.contract import LINEAR, STRENGTHS, check_contract, check_fitting, check_formula
from lorry.algebra import VeraDelta
from lorry.errors import FormatError

RANK = 3


def made(shape: tuple[int, ...] = LINEAR, **more: object) -> VeraDelta:
    """A delta whose shared matrices are for larger layers too, as those of a whole model are."""
    tensors = {"lambda_b": torch.randn(shape[0]), "lambda_d": torch.randn(RANK)}
    shared = {"shared_a": torch.randn(RANK, 20), "shared_b": torch.randn(30, RANK)}
    return VeraDelta(**{**tensors, **shared, "target_shape": shape, **more})


def slow_weight(delta: VeraDelta, shape: tuple[int, ...]) -> Tensor:
    b, d, a_all, b_all = (tensor.double() for tensor in delta.tensors().values())
    weight = torch.zeros(shape[0], shape[1], dtype=torch.float64)
    for row in range(shape[0]):
        for column in range(shape[1]):
            weight[row, column] = sum(b[row] * b_all[row, r] * d[r] * a_all[r, column] for r in range(RANK))
    return weight.reshape(shape)


@pytest.mark.parametrize("shape", [LINEAR, (8, 12), (12, 8, 1, 1)])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_delta_is_its_part_of_the_shared_factors(shape: tuple[int, ...], strength: float) -> None:
    delta, base = made(shape), torch.randn(shape)
    check_formula(delta, base, slow_weight(delta, shape) * strength, strength)
    pair = delta.low_rank()
    assert pair is not None
    assert torch.equal((pair.up @ pair.down.flatten(1)).reshape(shape), delta.weight(base))


def test_it_keeps_what_every_family_promises() -> None:
    check_contract(made(), torch.randn(LINEAR))
    check_fitting(made(target_shape=None), torch.randn(LINEAR), [(12, 21), (11, 8), (12, 8, 3, 3)])


def test_before_it_is_fitted_it_has_no_columns_and_no_factors() -> None:
    delta = made(target_shape=None)
    assert delta.shape == (12, -1)
    assert delta.low_rank() is None
    with pytest.raises(ValueError, match="takes its columns from the weight"):
        delta.weight()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lambda_d": torch.randn(2)}, "the ranks differ"),
        ({"shared_b": torch.randn(11, RANK)}, "too few rows"),
        ({"lambda_b": torch.randn(12, 1)}, "vectors of one axis"),
        ({"target_shape": (12, 21)}, "do not make a weight"),
        ({"shared_a": torch.randn(RANK)}, "shared matrices of two axes"),
    ],
)
def test_tensors_that_do_not_fit_each_other_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        made(**wrong)
