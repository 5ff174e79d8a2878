"""`BoftDelta` against its formula, written again with whole rotation and permutation matrices in float64."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor

from algebra.contract import STRENGTHS, check_contract, check_fitting, check_formula, needs_its_base
from lorry.algebra.boft import BoftDelta
from lorry.errors import FormatError

SHAPES = [(16, 8), (16, 8, 1, 1), (16, 8, 3, 3), (8, 16)]


def made(shape: tuple[int, ...], stages: int, on_input: bool = False, **more: Any) -> BoftDelta:
    """Blocks of 2 rows for LyCORIS and of 2 columns for PEFT."""
    turned = prod(shape[1:]) if on_input else shape[0]
    axes = [shape[0], *([1] * len(shape[1:]))]
    rescale = 1 + torch.randn(axes) / 3 if more.pop("rescale", False) else None
    return BoftDelta(torch.randn(stages, turned // 2, 2, 2) / 3, rescale, on_input=on_input, **more)


def lycoris_pairs(turned: int, stage: int, half: int) -> list[int]:
    """The rows as a stage takes them: row j of the first half of a stretch, then its partner, then j + 1."""
    distance, order = 2**stage * half, []
    for start in range(0, turned, 2 * distance):
        for first in range(start, start + distance):
            order += [first, first + distance]
    return order


def peft_order(turned: int, stage: int, size: int) -> list[int]:
    """The permutation that peft 0.21.2 multiplies from the left: even half blocks of a stretch, then odd ones."""
    half, stretch, order = size // 2, 2**stage * size, []
    for start in range(0, turned, stretch):
        pieces = [list(range(at, at + half)) for at in range(start, start + stretch, half)]
        order += [row for piece in pieces[0::2] + pieces[1::2] for row in piece]
    return order


def permutation(order: list[int]) -> Tensor:
    matrix = torch.zeros(len(order), len(order), dtype=torch.float64)
    for row, taken in enumerate(order):
        matrix[row, taken] = 1
    return matrix


def slow_product(delta: BoftDelta, rows: int, strength: float) -> Tensor:
    """All stages as one matrix."""
    stages, count, size, _ = delta.blocks.shape
    turned, blocks = count * size, delta.blocks.double()
    skews = (blocks.mT - blocks) / 2 if delta.on_input else blocks - blocks.mT
    if delta.constraint is not None:
        skews = skews * min(1.0, delta.constraint * rows / float((skews**2).sum()) ** 0.5)
    identity = torch.eye(size, dtype=torch.float64)
    product = torch.eye(turned, dtype=torch.float64)
    for stage in range(stages):
        rotations = [(identity + skew) @ torch.linalg.inv(identity - skew) for skew in skews[stage]]
        rotation = torch.block_diag(*(identity + strength * (turn - identity) for turn in rotations))
        if not delta.on_input:
            order = permutation(lycoris_pairs(turned, stage, size // 2))
            product = order.T @ rotation @ order @ product
        elif stages == 1:
            product = rotation @ product
        else:
            order = permutation(peft_order(turned, stage, size))
            product = order @ rotation @ order.T @ product
    return product


def slow_weight(delta: BoftDelta, base: Tensor, strength: float) -> Tensor:
    weight = base.double().flatten(1)
    product = slow_product(delta, weight.shape[0], strength)
    new = weight @ product.T if delta.on_input else product @ weight
    if delta.rescale is not None:
        new = (1 + strength * (delta.rescale.double().reshape(-1, 1) - 1)) * new
    return (new - weight).reshape(base.shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"rescale": True}, {"constraint": 0.05, "rescale": True}], ids=str)
def test_the_weight_is_turned_stage_by_stage(
    shape: tuple[int, ...], on_input: bool, stages: int, options: dict[str, Any]
) -> None:
    delta, base = made(shape, stages, on_input, **options), torch.randn(shape)
    check_contract(delta, base)
    for strength in STRENGTHS:
        check_formula(delta, base, slow_weight(delta, base, strength), strength)


@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize("stages", [1, 3])
def test_blocks_of_four_are_turned(on_input: bool, stages: int) -> None:
    delta, base = BoftDelta(torch.randn(stages, 4, 4, 4) / 3, on_input=on_input), torch.randn(16, 16)
    check_formula(delta, base, slow_weight(delta, base, 0.5), 0.5)


def test_one_stage_on_the_input_side_takes_odd_blocks() -> None:
    delta, base = BoftDelta(torch.randn(1, 3, 3, 3), on_input=True), torch.randn(5, 9)
    check_formula(delta, base, slow_weight(delta, base, 1.0))


def test_what_it_says_of_itself() -> None:
    delta = made((16, 8, 3, 3), 2)
    assert (delta.shape, delta.rank, delta.rank_scale, delta.low_rank()) == ((16, -1), None, 1.0, None)
    assert made((16, 8, 3, 3), 2, on_input=True).shape == (-1, 72)
    needs_its_base(delta, (8, 16, 3, 3))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("on_input", [False, True])
def test_it_fits_weights_that_its_blocks_make_up(shape: tuple[int, ...], on_input: bool) -> None:
    swapped, other = (shape[1], shape[0], *shape[2:]), (shape[0] + 4, shape[1] + 4, *shape[2:])
    check_fitting(
        made(shape, 2, on_input), torch.randn(shape), [swapped, other, (*shape[:2], 5, 5), (shape[0],)]
    )
    check_fitting(made(shape, 2, on_input, rescale=True), torch.randn(shape), [swapped, other])


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"blocks": torch.ones(4, 2, 2)}, "square blocks of 4 axes"),
        ({"blocks": torch.ones(1, 4, 2, 3)}, "square blocks of 4 axes"),
        ({"blocks": torch.ones(3, 6, 2, 2)}, "that many stages"),
        ({"blocks": torch.ones(1, 4, 3, 3)}, "that many stages"),
        ({"blocks": torch.ones(1, 4, 2, 2), "rescale": torch.ones(7)}, "expected 8 numbers in `rescale`"),
        ({"blocks": torch.ones(1, 4, 2, 2), "target_shape": (7, 8)}, r"the rows of a weight of \(7, 8\)"),
        (
            {"blocks": torch.ones(1, 4, 2, 2), "on_input": True, "target_shape": (8, 7)},
            "the columns of a weight",
        ),
    ],
)
def test_parts_that_do_not_join_are_refused(parts: dict[str, Any], problem: str) -> None:
    with pytest.raises(FormatError, match=f"a BOFT of blocks .* has no meaning: .*{problem}"):
        BoftDelta(**parts)
