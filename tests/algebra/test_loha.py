"""`LohaDelta` against its formula, written again as slow loops in float64."""

from __future__ import annotations

import itertools
from math import prod

import pytest
import torch
from torch import Tensor

from algebra.contract import SHAPES, STRENGTHS, check_close, check_contract, check_fitting, check_formula
from lorry.algebra.loha import LohaDelta
from lorry.errors import FormatError

CONVOLUTIONS = [shape for shape in SHAPES if len(shape) == 4]


def plain(
    shape: tuple[int, ...], rank: int = 3, alpha: float | None = 2.0, settled: bool = True
) -> LohaDelta:
    a, b = (shape[0], rank), (rank, prod(shape[1:]))
    target = shape if settled else None
    parts = (torch.randn(a), torch.randn(b), torch.randn(a), torch.randn(b))
    return LohaDelta(*parts, alpha=alpha, target_shape=target)


def tucker(shape: tuple[int, ...], rank: int = 3, alpha: float | None = 2.0) -> LohaDelta:
    a, b, core = (rank, shape[0]), (rank, shape[1]), (rank, rank, *shape[2:])
    parts = (
        torch.randn(a),
        torch.randn(b),
        torch.randn(a),
        torch.randn(b),
        torch.randn(core),
        torch.randn(core),
    )
    return LohaDelta(*parts, alpha=alpha)


def slow_half(a: Tensor, b: Tensor, core: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """One factor of the product, one number at a time."""
    a, b, half = a.double(), b.double(), torch.zeros(shape, dtype=torch.float64)
    for place in itertools.product(*map(range, shape)):
        out, fan_in, kernel = place[0], place[1], place[2:]
        if core is None:
            column = 0
            for index, size in zip(place[1:], shape[1:], strict=True):
                column = column * size + index
            half[place] = sum(a[out, r] * b[r, column] for r in range(a.shape[1]))
        else:
            pairs = itertools.product(range(core.shape[0]), range(core.shape[1]))
            terms = [core[(p, q, *kernel)].double() * a[p, out] * b[q, fan_in] for p, q in pairs]
            half[place] = sum(terms)
    return half


def slow_weight(delta: LohaDelta, shape: tuple[int, ...], strength: float) -> Tensor:
    scale = 1.0 if delta.alpha is None else delta.alpha / delta.w1_b.shape[0]
    one = slow_half(delta.w1_a, delta.w1_b, delta.t1, shape)
    return strength * scale * one * slow_half(delta.w2_a, delta.w2_b, delta.t2, shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_the_delta_is_the_product_of_two_low_rank_matrices(
    shape: tuple[int, ...], alpha: float | None
) -> None:
    delta = plain(shape, alpha=alpha)
    for strength in STRENGTHS:
        check_formula(delta, torch.randn(shape), slow_weight(delta, shape, strength), strength)


@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=str)
def test_with_cores_both_halves_are_of_tucker_form(shape: tuple[int, ...]) -> None:
    delta = tucker(shape)
    for strength in STRENGTHS:
        check_formula(delta, torch.randn(shape), slow_weight(delta, shape, strength), strength)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_keeps_the_contract_of_a_delta(shape: tuple[int, ...]) -> None:
    check_contract(plain(shape), torch.randn(shape))
    if len(shape) == 4:
        check_contract(tucker(shape), torch.randn(shape))


def test_what_it_says_of_itself() -> None:
    delta = plain((12, 8, 3, 3), rank=3, alpha=2.0)
    assert (delta.shape, delta.rank, delta.rank_scale) == ((12, 8, 3, 3), 3, 2 / 3)
    assert plain((12, 8), alpha=None).rank_scale == 1.0
    assert tucker((12, 8, 3, 3), rank=5).shape == (12, 8, 3, 3)


def test_the_weight_settles_how_columns_divide_into_a_kernel() -> None:
    loose, shape = plain((12, 8, 3, 3), settled=False), (12, 8, 3, 3)
    assert loose.shape == (12, 72)
    settled = loose.fitted(shape)
    assert settled is not None
    check_formula(settled, torch.randn(shape), slow_weight(loose, shape, 1.0))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_fits_its_own_shape_only(shape: tuple[int, ...]) -> None:
    refused = [(11, *shape[1:]), (shape[0], 7, *shape[2:]), (shape[1], shape[0], 5, 5), (shape[0],)]
    check_fitting(plain(shape, settled=False), torch.randn(shape), refused)
    check_fitting(plain(shape), torch.randn(shape), [*refused, (shape[0], shape[1] // 2, 2, *shape[2:])])
    if len(shape) == 4:
        check_fitting(tucker(shape), torch.randn(shape), refused)


@pytest.mark.parametrize("shape", [(40, 36), (40, 4, 3, 3)], ids=str)
def test_small_ranks_have_an_exact_low_rank_form(shape: tuple[int, ...]) -> None:
    delta = plain(shape, rank=3)
    pair = delta.low_rank()
    assert pair is not None
    assert (pair.rank, pair.down.shape[1:], pair.up.shape) == (9, shape[1:], (40, 9))
    product = pair.scale * (pair.up.double() @ pair.down.double().flatten(1))
    check_close(product.reshape(shape), slow_weight(delta, shape, 1.0))


def test_there_is_no_low_rank_form_where_it_would_not_be_low_or_has_cores() -> None:
    assert plain((40, 35), rank=3).low_rank() is None
    assert tucker((40, 40, 1, 3), rank=2).low_rank() is None


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"w1_a": torch.ones(12, 2)}, "differ in rank"),
        ({"w2_b": torch.ones(4, 8)}, "differ in rank"),
        ({"w2_b": torch.ones(3, 9)}, "halves differ in shape"),
        ({"w1_b": torch.ones(3, 8, 1)}, "2 axes"),
        ({"w1_a": torch.ones(12, 0), "w1_b": torch.ones(0, 8)}, "rank of at least 1"),
        ({"t1": torch.ones(3, 3, 3, 3)}, "one half has a core"),
        ({"t1": torch.ones(3, 3, 3, 3), "t2": torch.ones(3, 3, 3, 3)}, "differ in rank"),
        ({"target_shape": (12, 2, 2, 3)}, r"do not make a weight of \(12, 2, 2, 3\)"),
    ],
)
def test_parts_that_do_not_join_are_refused(changed: dict[str, object], problem: str) -> None:
    parts = {**plain((12, 8)).tensors(), **changed}
    with pytest.raises(FormatError, match=f"a LoHa of w1_a .* has no meaning: .*{problem}"):
        LohaDelta(**parts)
