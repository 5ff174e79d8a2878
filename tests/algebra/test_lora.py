"""`LoraDelta` against its formula, written again as slow loops in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from lorry.algebra import LoraDelta
from lorry.errors import FormatError
from models import random_delta


def slow_weight(delta: LoraDelta) -> Tensor:
    """The full delta by the formula of the papers, one number at a time, in float64."""
    up = delta.up.double().reshape(delta.up.shape[0], -1).tolist()
    kernel = delta.mid.shape[2:] if delta.mid is not None else delta.down.shape[2:]
    down = delta.down.double()
    rank, fan_in, out = down.shape[0], down.shape[1], len(up)
    divisor = rank**0.5 if delta.rank_stabilised else rank
    scale = 1.0 if delta.alpha is None else delta.alpha / divisor
    places = list(itertools.product(*(range(size) for size in kernel)))
    weight = torch.zeros(out, fan_in, *kernel, dtype=torch.float64)
    for o, i, place in itertools.product(range(out), range(fan_in), places):
        if delta.mid is None:
            terms = [up[o][r] * float(down[(r, i, *place)]) for r in range(rank)]
        else:
            core = delta.mid.double()
            pairs = itertools.product(range(rank), range(rank))
            terms = [up[o][p] * float(core[(p, q, *place)]) * float(down[q, i].sum()) for p, q in pairs]
        weight[(o, i, *place)] = scale * sum(terms)
    return weight


def check_close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raise where the largest difference is over `tolerance` times the largest number."""
    assert got.shape == expected.shape
    error = float((got.double() - expected).abs().max() / expected.abs().max())
    assert error <= tolerance, f"relative error {error:.1e}"


SHAPES: list[tuple[int, ...]] = [(7, 5), (7, 5, 1, 1), (6, 5, 3, 3), (4, 3, 1, 3)]
CASES = [
    *({"shape": shape} for shape in SHAPES),
    {"shape": (7, 5), "alpha": 2.0},
    {"shape": (7, 5), "alpha": 4.0, "rank_stabilised": True},
    {"shape": (6, 5, 3, 3), "alpha": 0.5},
    {"shape": (6, 5, 3, 3), "tucker": True, "alpha": 8.0},
    {"shape": (4, 3, 1, 3), "tucker": True},
    {"shape": (4, 3, 5), "tucker": True, "alpha": 2.0},
    {"shape": (4, 3, 2, 1, 3), "tucker": True, "alpha": 2.0},
    {"shape": (9, 8), "rank": 1, "alpha": 3.0},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_full_delta_is_the_formula_of_the_papers(case: dict[str, Any]) -> None:
    delta = random_delta(**case)
    assert delta.shape == case["shape"]
    check_close(delta.weight(dtype=torch.float64), slow_weight(delta), 1e-14)
    check_close(delta.weight(), slow_weight(delta), 1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_two_factors_multiply_to_the_full_delta(case: dict[str, Any]) -> None:
    delta = random_delta(**case)
    pair = delta.low_rank()
    assert pair.rank == delta.rank
    assert pair.up.shape == (case["shape"][0], pair.rank)
    product = pair.scale * (pair.up.double() @ pair.down.double().flatten(1))
    check_close(product.reshape(delta.shape), slow_weight(delta), 1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_delta_is_linear_in_the_strength(case: dict[str, Any]) -> None:
    delta = random_delta(**case)
    check_close(delta.weight(dtype=torch.float64, strength=-0.3), -0.3 * slow_weight(delta), 1e-14)
    assert not delta.weight(strength=0.0).any()


def test_factors_are_upcast_before_they_are_multiplied() -> None:
    delta = random_delta((40, 30), rank=8, dtype=torch.float16)
    check_close(delta.weight(), slow_weight(delta), 1e-6)
    assert delta.weight().dtype == torch.float32


def test_the_full_delta_shares_no_memory_with_the_factors() -> None:
    delta = LoraDelta(torch.ones(1, 4), torch.ones(1, 1))
    delta.weight().zero_()
    assert bool(delta.down.all())
    assert bool(delta.up.all())


@pytest.mark.parametrize(
    ("alpha", "rank_stabilised", "expected"),
    [(None, False, 1.0), (2.0, False, 0.5), (2.0, True, 1.0), (0.0, False, 0.0)],
)
def test_the_rank_scale_follows_alpha(alpha: float | None, rank_stabilised: bool, expected: float) -> None:
    delta = random_delta((8, 9), rank=4, alpha=alpha, rank_stabilised=rank_stabilised)
    assert delta.rank_scale == expected


@pytest.mark.parametrize(
    ("have", "want"),
    [((7, 5), (7, 5, 1, 1)), ((7, 5, 1, 1), (7, 5)), ((7, 5), (7, 5)), ((6, 5, 3, 3), (6, 5, 3, 3))],
)
def test_trailing_axes_of_one_are_added_or_taken_away_to_fit(
    have: tuple[int, ...], want: tuple[int, ...]
) -> None:
    delta = random_delta(have, alpha=2.0)
    fitted = delta.fitted(want)
    assert fitted is not None
    assert fitted.shape == want
    assert torch.equal(fitted.weight().flatten(), delta.weight().flatten())


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ((7, 5), (5, 7)),
        ((7, 5), (7, 5, 3, 3)),
        ((7, 5, 3, 3), (7, 5)),
        ((7, 5, 3, 3), (7, 45)),
        ((7, 5, 1, 3), (7, 5, 3, 1)),
        ((7, 5), (7, 6)),
    ],
)
def test_a_delta_that_differs_by_more_does_not_fit(have: tuple[int, ...], want: tuple[int, ...]) -> None:
    assert random_delta(have).fitted(want) is None


def test_a_tucker_core_fits_its_own_shape_only() -> None:
    delta = random_delta((6, 5, 3, 3), tucker=True)
    assert delta.fitted((6, 5, 3, 3)) is delta
    assert delta.fitted((6, 5)) is None


@pytest.mark.parametrize(
    ("down", "up", "mid", "problem"),
    [
        ((3, 5), (7, 4), None, "`down` has rank 3, `up` has rank 4"),
        ((3, 5, 1, 1, 1, 1), (7, 3), None, "2 to 5 axes"),
        ((3, 5), (7, 3, 1), None, "of as many as `down`"),
        ((3, 5, 2, 2, 2), (7, 3, 1), None, "of as many as `down`"),
        ((5,), (7, 3), None, "2 to 5 axes"),
        ((0, 5), (7, 0), None, "a rank of at least 1"),
        ((3, 5), (7, 3, 3, 3), None, "kernel is 1x1"),
        ((3, 5, 3, 3), (7, 3, 1, 1), (3, 3, 3, 3), "does not join them"),
        ((3, 5, 1, 1), (7, 3, 1, 1), (3, 4, 3, 3), "does not join them"),
        ((3, 5, 1, 1), (7, 4, 1, 1), (3, 4, 3, 3), "does not join them"),
        ((3, 5, 1, 1), (7, 3, 1, 1), (3, 3), "does not join them"),
    ],
)
def test_factors_that_do_not_belong_together_are_refused(
    down: tuple[int, ...], up: tuple[int, ...], mid: tuple[int, ...] | None, problem: str
) -> None:
    with pytest.raises(FormatError, match=problem):
        LoraDelta(torch.zeros(down), torch.zeros(up), None if mid is None else torch.zeros(mid))


@pytest.mark.parametrize("tucker", [False, True])
def test_a_delta_can_be_made_again_over_its_own_tensors(tucker: bool) -> None:
    delta = random_delta((6, 5, 3, 3), tucker=tucker, alpha=2.0, rank_stabilised=True)
    again = delta.with_tensors({name: tensor.clone() for name, tensor in delta.tensors().items()})
    assert torch.equal(again.weight(), delta.weight())
    assert again.rank_scale == delta.rank_scale
    assert again.nbytes == sum(tensor.nbytes for tensor in (delta.down, delta.up)) + (
        delta.mid.nbytes if delta.mid is not None else 0
    )
