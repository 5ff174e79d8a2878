"""`GloraDelta` against its formula, written again in float64, one place of the kernel at a time."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from algebra.contract import SHAPES, STRENGTHS, check_contract, check_fitting, check_formula, needs_its_base
from lorry.algebra.glora import GloraDelta
from lorry.errors import FormatError


def made(shape: tuple[int, ...], rank: int = 3, alpha: float | None = 2.0, **more: bool) -> GloraDelta:
    ones = [1] * len(shape[2:])
    out, fan_in, kernel = shape[0], shape[1], shape[2:]
    left, right = torch.randn(fan_in, rank, *ones), torch.randn(rank, fan_in, *ones)
    up, down = torch.randn(out, rank, *ones), torch.randn(rank, fan_in, *kernel)
    parts = (right, left, down, up) if more.get("old_layout") else (left, right, up, down)
    return GloraDelta(*parts, alpha=alpha, **more)


def slow_weight(delta: GloraDelta, base: Tensor, strength: float) -> Tensor:
    left, right, up, down = (tensor.double() for tensor in (delta.a1, delta.a2, delta.b1, delta.b2))
    if delta.old_layout:
        left, right, up, down = right, left, down, up
    rank, fan_in = right.shape[:2]
    scale = 1.0
    if delta.alpha is not None:
        scale = delta.alpha / (rank**0.5 if delta.rank_stabilised else rank)
    inner = left.reshape(fan_in, rank) @ right.reshape(rank, fan_in)
    weight = torch.zeros(base.shape, dtype=torch.float64)
    for kernel in itertools.product(*map(range, base.shape[2:])):
        at = (slice(None), slice(None), *kernel)
        weight[at] = base.double()[at] @ inner + up.reshape(-1, rank) @ down[at]
    return strength * scale * weight


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_one_part_is_multiplied_on_and_one_added(
    shape: tuple[int, ...], old: bool, alpha: float | None
) -> None:
    delta, base = made(shape, alpha=alpha, old_layout=old), torch.randn(shape)
    check_contract(delta, base)
    for strength in STRENGTHS:
        check_formula(delta, base, slow_weight(delta, base, strength), strength)


def test_rank_stabilised_scales_by_the_root_of_the_rank() -> None:
    delta, base = made((12, 8), rank=3, alpha=2.0, rank_stabilised=True), torch.randn(12, 8)
    assert delta.rank_scale == 2.0 / 3**0.5
    check_formula(delta, base, slow_weight(delta, base, 1.0))


def test_what_it_says_of_itself() -> None:
    delta = made((12, 8, 3, 3))
    assert (delta.shape, delta.rank, delta.rank_scale, delta.low_rank()) == ((12, 8, 3, 3), 3, 2 / 3, None)
    old = made((12, 8, 3, 3), old_layout=True)
    assert (old.shape, old.rank) == ((12, 8, 3, 3), 3)
    needs_its_base(delta, (8, 12, 3, 3))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("old", [False, True])
def test_it_fits_its_own_shape_only(shape: tuple[int, ...], old: bool) -> None:
    refused = [(shape[1], shape[0], *shape[2:]), (shape[0], 7, *shape[2:]), (*shape[:2], 5, 5), (shape[0],)]
    check_fitting(made(shape, old_layout=old), torch.randn(shape), refused)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, (8, 8), (8, 8, 3, 3)], ids=str)
def test_shapes_tell_the_layouts_apart(shape: tuple[int, ...], old: bool) -> None:
    delta = made(shape, rank=3, old_layout=old)
    assert GloraDelta.find_layout(delta.a1, delta.a2, delta.b1, delta.b2) is old


def test_where_all_sides_are_equal_the_layout_is_the_new_one() -> None:
    assert GloraDelta.find_layout(*(torch.ones(3, 3) for _ in range(4))) is False
    assert GloraDelta.find_layout(*(torch.ones(3, 4) for _ in range(4))) is None


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"a1": torch.ones(8)}, "2 axes"),
        ({"a1": torch.ones(8, 3, 3)}, "a kernel in the last factor only"),
        ({"a1": torch.ones(7, 3)}, "multiply the weight do not join"),
        ({"a1": torch.ones(8, 0), "a2": torch.ones(0, 8)}, "multiply the weight do not join"),
        ({"b1": torch.ones(12, 4)}, "ranks differ"),
        ({"b1": torch.ones(12, 4), "b2": torch.ones(4, 8)}, "ranks differ"),
        ({"b2": torch.ones(3, 7)}, "another number of inputs"),
        ({"old_layout": True}, "do not join|ranks differ|another number"),
    ],
)
def test_parts_that_do_not_join_are_refused(changed: dict[str, object], problem: str) -> None:
    parts = {**made((12, 8)).tensors(), **changed}
    with pytest.raises(
        FormatError, match=f"a GLoRA in the (new|old) layout of a1 .* has no meaning: .*({problem})"
    ):
        GloraDelta(**parts)
