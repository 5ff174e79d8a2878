"""`LokrDelta` against its formula, written again as slow loops in float64."""

from __future__ import annotations

import itertools
from math import prod

import pytest
import torch
from torch import Tensor

from algebra.contract import STRENGTHS, check_close, check_contract, check_fitting, check_formula
from lorry.algebra.lokr import LokrDelta
from lorry.errors import FormatError

KERNELS: list[tuple[int, ...]] = [(), (1, 1), (3, 3), (1, 3)]
ONE, TWO, RANK = (3, 2), (4, 5), 2
"""The shapes of the two factors."""
HOW = ["whole", "factors", "core"]


def made(one: str, two: str, kernel: tuple[int, ...] = (), **more: object) -> LokrDelta:
    """A delta of (12, 10, *kernel), each of its matrices made as said."""
    target = (12, 10, *kernel)
    parts: dict[str, object] = {}
    if one == "whole":
        parts["w1"] = torch.randn(ONE)
    else:
        parts |= {"w1_a": torch.randn(ONE[0], RANK), "w1_b": torch.randn(RANK, ONE[1])}
    if two == "whole":
        parts["w2"] = torch.randn(*TWO, *kernel)
    elif two == "factors":
        parts |= {"w2_a": torch.randn(TWO[0], RANK), "w2_b": torch.randn(RANK, TWO[1] * prod(kernel))}
    else:
        parts |= {"w2_a": torch.randn(RANK, TWO[0]), "w2_b": torch.randn(RANK, TWO[1])}
        parts["t2"] = torch.randn(RANK, RANK, *kernel)
    return LokrDelta(**{"target_shape": target, "alpha": 3.0, **parts, **more})


def cases(kernels: list[tuple[int, ...]]) -> list[tuple[str, str, tuple[int, ...]]]:
    ways = itertools.product(HOW[:2], HOW, kernels)
    return [(one, two, kernel) for one, two, kernel in ways if two != "core" or kernel]


def slow_second(delta: LokrDelta, kernel: tuple[int, ...]) -> Tensor:
    """The second matrix with its kernel, one number at a time."""
    if delta.w2 is not None:
        return delta.w2.double()
    assert delta.w2_a is not None
    assert delta.w2_b is not None
    a, b, matrix = delta.w2_a.double(), delta.w2_b.double(), torch.zeros(*TWO, *kernel, dtype=torch.float64)
    for place in itertools.product(*map(range, matrix.shape)):
        if delta.t2 is None:
            column = sum(index * prod(matrix.shape[axis + 2 :]) for axis, index in enumerate(place[1:]))
            matrix[place] = sum(a[place[0], r] * b[r, column] for r in range(RANK))
        else:
            pairs = itertools.product(range(RANK), range(RANK))
            core = delta.t2.double()
            matrix[place] = sum(core[(p, q, *place[2:])] * a[p, place[0]] * b[q, place[1]] for p, q in pairs)
    return matrix


def slow_weight(delta: LokrDelta, kernel: tuple[int, ...], scale: float) -> Tensor:
    first = delta.w1
    if first is None:
        assert delta.w1_a is not None
        assert delta.w1_b is not None
        first = delta.w1_a.double() @ delta.w1_b.double()
    second = slow_second(delta, kernel)
    weight = torch.zeros(ONE[0] * TWO[0], ONE[1] * TWO[1], *kernel, dtype=torch.float64)
    for o1, i1, o2, i2 in itertools.product(*map(range, (*ONE, *TWO))):
        weight[o1 * TWO[0] + o2, i1 * TWO[1] + i2] = scale * first[o1, i1].double() * second[o2, i2]
    return weight


@pytest.mark.parametrize(("one", "two", "kernel"), cases(KERNELS))
def test_the_delta_is_the_kronecker_product(one: str, two: str, kernel: tuple[int, ...]) -> None:
    delta = made(one, two, kernel)
    scale = 1.0 if (one, two) == ("whole", "whole") else 3.0 / RANK
    assert delta.rank_scale == scale
    base = torch.randn(delta.shape)
    for strength in STRENGTHS:
        check_formula(delta, base, slow_weight(delta, kernel, strength * scale), strength)


@pytest.mark.parametrize(("one", "two", "kernel"), cases([(), (3, 3)]))
def test_it_keeps_the_contract_of_a_delta(one: str, two: str, kernel: tuple[int, ...]) -> None:
    check_contract(made(one, two, kernel), torch.randn(12, 10, *kernel))
    assert made(one, two, kernel).low_rank() is None


def test_it_does_not_matter_how_its_matrices_lie_in_memory() -> None:
    w1, w2 = torch.randn(4, 6), torch.randn(3, 5)
    turned = LokrDelta(w1=w1.T.contiguous().T, w2=w2.T.contiguous().T)
    assert torch.equal(turned.weight(), LokrDelta(w1=w1, w2=w2).weight())
    # A core of rank 1: what lies transposed is called contiguous, as one of its sides is 1.
    cored = LokrDelta(
        w1=torch.randn(4, 8), w2_a=torch.randn(1, 2), w2_b=torch.randn(1, 3), t2=torch.randn(1, 1, 3, 3)
    )
    for delta in (turned, cored):
        pair = delta.exact_factors()
        check_close(pair.up @ pair.down.flatten(1), delta.weight().flatten(1), 1e-6)


def test_two_whole_matrices_have_no_rank_and_heed_no_alpha() -> None:
    delta = made("whole", "whole", alpha=9999999999.0)
    assert (delta.rank, delta.rank_scale) == (None, 1.0)
    peft = made("whole", "whole", alpha=9999999999.0, full_scale=0.25)
    assert torch.equal(peft.weight() * 4, made("whole", "whole").with_tensors(peft.tensors()).weight())


def test_the_rank_is_that_of_the_second_matrix_where_it_has_one() -> None:
    first = {"w1_a": torch.randn(3, 7), "w1_b": torch.randn(7, 2), "alpha": 1.0}
    both = LokrDelta(**first, w2_a=torch.randn(4, 5), w2_b=torch.randn(5, 5))
    assert (both.rank, both.rank_scale) == (5, 1 / 5)
    only_first = LokrDelta(**first, w2=torch.randn(4, 5))
    assert (only_first.rank, only_first.rank_scale) == (7, 1 / 7)
    assert made("factors", "factors", alpha=None).rank_scale == 1.0


def test_the_weight_settles_how_columns_divide_into_a_kernel() -> None:
    loose, kernel = made("whole", "factors", (3, 3), target_shape=None), (3, 3)
    assert loose.shape == (12, 90)
    settled = loose.fitted((12, 10, 3, 3))
    assert settled is not None
    check_formula(settled, torch.randn(12, 10, 3, 3), slow_weight(loose, kernel, 3.0 / RANK))


@pytest.mark.parametrize(("one", "two", "kernel"), cases(KERNELS))
def test_it_fits_its_own_shape_only(one: str, two: str, kernel: tuple[int, ...]) -> None:
    base, refused = (
        torch.randn(12, 10, *kernel),
        [(11, 10, *kernel), (12, 9, *kernel), (10, 12, *kernel), (12,)],
    )
    check_fitting(made(one, two, kernel, target_shape=None), base, refused)
    check_fitting(made(one, two, kernel), base, [*refused, (12, 5, 2, *kernel)])


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"w1": None}, "either `w1` or both"),
        ({"w1_a": torch.ones(3, 2)}, "either `w1` or both"),
        ({"w2_b": None}, "either `w2` or both"),
        ({"w2": torch.ones(4, 5)}, "either `w2` or both"),
        ({"w1": torch.ones(3, 2, 1)}, "parts of `w1` do not join"),
        ({"w2_b": torch.ones(3, 5)}, "parts of `w2` do not join"),
        ({"t2": torch.ones(2, 2, 3, 3)}, "parts of `w2` do not join"),
        ({"w2_a": torch.ones(4, 0), "w2_b": torch.ones(0, 5)}, "rank of at least 1"),
        (
            {"w2_a": None, "w2_b": None, "w2": torch.ones(4, 5), "t2": torch.ones(2, 2, 3, 3)},
            "whole and has a core",
        ),
        ({"target_shape": (12, 5, 3)}, r"do not make a weight of \(12, 5, 3\)"),
    ],
)
def test_parts_that_do_not_join_are_refused(changed: dict[str, object], problem: str) -> None:
    parts = {**made("whole", "factors").tensors(), **changed}
    with pytest.raises(FormatError, match=f"a LoKr of .* has no meaning: .*{problem}"):
        LokrDelta(**parts)
