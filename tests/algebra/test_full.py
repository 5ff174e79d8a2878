"""`FullDelta`: the difference itself."""

from __future__ import annotations

import pytest
import torch

from algebra.contract import SHAPES, STRENGTHS, check_contract, check_fitting, check_formula
from lorry.algebra.full import FullDelta


@pytest.mark.parametrize("shape", [*SHAPES, (12,), (12, 8, 3, 3, 3)], ids=str)
def test_the_delta_is_the_difference_in_any_shape(shape: tuple[int, ...]) -> None:
    delta, base = FullDelta(torch.randn(shape)), torch.randn(shape)
    check_contract(delta, base)
    for strength in STRENGTHS:
        check_formula(delta, base, strength * delta.diff.double(), strength)
    assert (delta.shape, delta.rank, delta.rank_scale, delta.low_rank()) == (shape, None, 1.0, None)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_fits_its_own_shape_only(shape: tuple[int, ...]) -> None:
    refused = [(shape[1], shape[0], *shape[2:]), (*shape, 2), (shape[0],)]
    check_fitting(FullDelta(torch.randn(shape)), torch.randn(shape), refused)


def test_the_difference_of_a_bias_is_for_no_matrix() -> None:
    delta = FullDelta(torch.randn(12))
    assert delta.fitted((12,)) is delta
    assert delta.fitted((12, 1)) is None


def test_a_bias_may_have_the_scale_of_the_lora_beside_it() -> None:
    delta, base = FullDelta(torch.randn(12), 0.375), torch.randn(12)
    check_contract(delta, base)
    for strength in STRENGTHS:
        check_formula(delta, base, strength * 0.375 * delta.diff.double(), strength)
    assert delta.rank_scale == 0.375
    fitted = FullDelta(torch.randn(12, 8), 0.375).fitted((12, 8, 1, 1))
    assert fitted is not None
    assert fitted.rank_scale == 0.375
