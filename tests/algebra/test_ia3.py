"""`Ia3Delta` against its formula, written again as slow loops in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from algebra.contract import SHAPES, STRENGTHS, check_contract, check_fitting, check_formula, needs_its_base
from lorry.algebra.ia3 import Ia3Delta
from lorry.errors import FormatError


def slow_weight(vector: Tensor, neutral: float, on_input: bool, base: Tensor, strength: float) -> Tensor:
    weight = torch.zeros(base.shape, dtype=torch.float64)
    numbers = vector.double().reshape(-1)
    for place in itertools.product(*map(range, base.shape)):
        factor = 1 + strength * (numbers[place[1] if on_input else place[0]] - neutral)
        weight[place] = base.double()[place] * factor - base.double()[place]
    return weight


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize("neutral", [0.0, 1.0])
def test_rows_or_columns_are_multiplied(shape: tuple[int, ...], on_input: bool, neutral: float) -> None:
    delta, base = Ia3Delta(neutral + torch.randn(shape[on_input]), on_input, neutral), torch.randn(shape)
    check_contract(delta, base)
    for strength in STRENGTHS:
        check_formula(delta, base, slow_weight(delta.vector, neutral, on_input, base, strength), strength)


@pytest.mark.parametrize("axes", [(12,), (12, 1), (1, 12), (1, 12, 1, 1)], ids=str)
def test_axes_of_one_around_the_vector_change_nothing(axes: tuple[int, ...]) -> None:
    vector, base = torch.randn(12), torch.randn(12, 8, 3, 3)
    assert torch.equal(Ia3Delta(vector.reshape(axes)).weight(base), Ia3Delta(vector).weight(base))


def test_a_bias_is_scaled_as_the_rows_are() -> None:
    delta, bias = Ia3Delta(torch.randn(12), neutral=1.0), torch.randn(12)
    fitted = delta.fitted((12,))
    assert fitted is not None
    check_formula(fitted, bias, slow_weight(delta.vector, 1.0, False, bias, 1.0))
    assert Ia3Delta(torch.randn(12), on_input=True).fitted((12,)) is None


def test_what_it_says_of_itself() -> None:
    assert Ia3Delta(torch.randn(12)).shape == (12, -1)
    delta = Ia3Delta(torch.randn(8), on_input=True)
    assert (delta.shape, delta.rank, delta.rank_scale, delta.low_rank()) == ((-1, 8), None, 1.0, None)
    needs_its_base(delta, (8, 12))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("on_input", [False, True])
def test_it_fits_weights_of_as_many_rows_or_columns(shape: tuple[int, ...], on_input: bool) -> None:
    refused = [
        (shape[1], shape[0], *shape[2:]),
        (7, *shape[1:]),
        (shape[0], 7, *shape[2:]),
        (*shape[:2], 5, 5),
    ]
    check_fitting(Ia3Delta(torch.randn(shape[on_input]), on_input), torch.randn(shape), refused)


def test_what_is_no_vector_is_refused() -> None:
    with pytest.raises(FormatError, match=r"an \(IA\)\^3 of vector \(3, 4\) has no meaning: .*one axis"):
        Ia3Delta(torch.ones(3, 4))
    with pytest.raises(FormatError, match=r"does not lie along the rows of a weight of \(5, 4\)"):
        Ia3Delta(torch.ones(4), target_shape=(5, 4))
