"""`OftDelta` against its formula, written again with whole rotation matrices in float64."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor

from algebra.contract import SHAPES, STRENGTHS, check_contract, check_fitting, check_formula, needs_its_base
from lorry.algebra.oft import OftDelta
from lorry.errors import FormatError

OUTPUT: list[dict[str, Any]] = [
    {},
    {"rescale": True},
    {"constraint": 0.05},
    {"constraint": 100.0},
    {"constraint": 0.05, "rescale": True, "opposite": True},
]
INPUT: list[dict[str, Any]] = [
    {},
    {"opposite": True},
    *({"neumann_terms": terms} for terms in range(1, 8)),
    {"neumann_terms": 5, "scaled": True},
    {"neumann_terms": 5, "opposite": True, "shared": True},
    {"scaled": True, "block_norm": 0.2},
    {"rescale": True},
]


def output_side(shape: tuple[int, ...], size: int = 4, **more: Any) -> OftDelta:
    rescale = 1 + torch.randn(shape[0], *([1] * len(shape[1:]))) / 3 if more.pop("rescale", False) else None
    return OftDelta(torch.randn(shape[0] // size, size, size) / 3, rescale, **more)


def input_side(shape: tuple[int, ...], size: int = 4, **more: Any) -> OftDelta:
    rescale = 1 + torch.randn(shape[0], 1) / 3 if more.pop("rescale", False) else None
    count = 1 if more.pop("shared", False) else prod(shape[1:]) // size
    return OftDelta(torch.randn(count, size * (size - 1) // 2) / 3, rescale, on_input=True, **more)


def slow_rotation(delta: OftDelta, rows: int, turned: int) -> Tensor:
    """R as one matrix with the blocks on its diagonal."""
    blocks = delta.blocks.double()
    if blocks.ndim == 3:
        skews = [block - block.T for block in blocks]
    else:
        skews = []
        for packed in blocks:
            size = next(n for n in range(1, 99) if n * (n - 1) // 2 == len(packed))
            numbers, skew = iter(packed), torch.zeros(size, size, dtype=torch.float64)
            for row in range(size):
                for column in range(row + 1, size):
                    skew[row, column] = next(numbers)
            skews.append(skew - skew.T)
    if delta.constraint is not None:
        norm = sum(float((skew**2).sum()) for skew in skews) ** 0.5
        skews = [skew * min(1.0, delta.constraint * rows / norm) for skew in skews]
    if delta.block_norm is not None:
        limit = delta.block_norm / len(skews) ** 0.5
        skews = [skew * min(1.0, limit / float((skew**2).sum()) ** 0.5) for skew in skews]
    if delta.scaled:
        skews = [skew / (2 * (len(skew) - 1) ** 0.5) for skew in skews]
    if delta.opposite:
        skews = [-skew for skew in skews]
    rotations = [slow_block(skew, delta.neumann_terms) for skew in skews]
    return torch.block_diag(*rotations * (turned // (len(rotations) * len(rotations[0]))))


def slow_block(skew: Tensor, terms: int | None) -> Tensor:
    identity = torch.eye(len(skew), dtype=torch.float64)
    if terms is None:
        return (identity + skew) @ torch.linalg.inv(identity - skew)
    powers: dict[int, list[float]] = {  # what peft 0.21.2 multiplies each power of Q by
        1: [1],
        2: [1, 2],
        3: [1, 2, 2, 1],
        4: [1, 2, 2, 1],
        5: [1, 2, 2, 2, 1],
        6: [1, 2, 2, 2, 2, 1],
        7: [1, 2, 2, 2, 2, 2, 1],
    }
    total = torch.zeros_like(skew)
    for power, factor in enumerate(powers[terms]):
        total += factor * torch.linalg.matrix_power(skew, power)
    return total


def slow_weight(delta: OftDelta, base: Tensor, strength: float) -> Tensor:
    weight = base.double().flatten(1)
    turned = weight.shape[1] if delta.on_input else weight.shape[0]
    identity = torch.eye(turned, dtype=torch.float64)
    rotation = identity + strength * (slow_rotation(delta, weight.shape[0], turned) - identity)
    new = weight @ rotation.T if delta.on_input else rotation.T @ weight
    if delta.rescale is not None:
        new = (1 + strength * (delta.rescale.double().reshape(-1, 1) - 1)) * new
    return (new - weight).reshape(base.shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", OUTPUT, ids=str)
def test_the_output_side_is_turned_by_blocks(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    delta, base = output_side(shape, **options), torch.randn(shape)
    check_contract(delta, base)
    for strength in STRENGTHS:
        check_formula(delta, base, slow_weight(delta, base, strength), strength)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", INPUT, ids=str)
def test_the_input_side_is_turned_by_blocks(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    delta, base = input_side(shape, **options), torch.randn(shape)
    if options != {"neumann_terms": 1}:
        check_contract(delta, base)
    for strength in STRENGTHS:
        check_formula(delta, base, slow_weight(delta, base, strength), strength)


def test_a_constraint_of_zero_turns_nothing_and_none_is_no_limit() -> None:
    delta, base = output_side((12, 8)), torch.randn(12, 8)
    still = OftDelta(delta.blocks, constraint=0.0)
    assert not still.weight(base).any()
    assert torch.equal(OftDelta(delta.blocks, constraint=1e6).weight(base), delta.weight(base))


def test_a_turn_keeps_every_column_as_long_as_it_was() -> None:
    base = torch.randn(12, 8, dtype=torch.float64)
    turned = base + output_side((12, 8)).weight(base, torch.float64)
    torch.testing.assert_close(turned.norm(dim=0), base.norm(dim=0))


def test_a_small_turn_keeps_its_digits() -> None:
    delta, base = OftDelta(torch.randn(3, 4, 4) * 1e-5), torch.randn(12, 8)
    check_formula(delta, base, exact_small(delta, base))


def exact_small(delta: OftDelta, base: Tensor) -> Tensor:
    """R^T - I = 2 Q^T + 2 Q^2 + ..., of which two terms are enough here."""
    skews = [block - block.T for block in delta.blocks.double()]
    step = torch.block_diag(*(-2 * skew + 2 * skew @ skew - 2 * skew @ skew @ skew for skew in skews))
    return step @ base.double()


def test_what_it_says_of_itself() -> None:
    delta = output_side((12, 8, 3, 3))
    assert (delta.shape, delta.rank, delta.rank_scale, delta.low_rank()) == ((12, -1), None, 1.0, None)
    assert input_side((12, 8, 3, 3)).shape == (-1, 72)
    assert input_side((12, 8, 3, 3), shared=True).shape == (-1, -1)
    needs_its_base(delta, (8, 12, 3, 3))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_fits_weights_that_its_blocks_make_up(shape: tuple[int, ...]) -> None:
    base, swapped = torch.randn(shape), (shape[1], shape[0], *shape[2:])
    other = (shape[0] + 4, shape[1] + 4, *shape[2:])
    check_fitting(output_side(shape), base, [swapped, other, (*shape[:2], 5, 5), (shape[0],)])
    check_fitting(output_side(shape, rescale=True), base, [swapped, other])
    check_fitting(input_side(shape), base, [swapped, other, (*shape[:2], 5, 5)])
    shared = input_side(shape, shared=True)
    check_fitting(shared, base, [swapped, (*shape[:2], 5, 5)])
    assert shared.fitted((5, 6)) is None, "blocks of 4"
    assert shared.fitted((5, 16)) is not None
    assert input_side(shape, shared=True, rescale=True).fitted((5, 16)) is None, "a rescale of other rows"


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"blocks": torch.ones(3, 4, 5)}, "square blocks"),
        ({"blocks": torch.ones(12)}, "blocks of 3 axes"),
        ({"blocks": torch.ones(0, 4, 4)}, "blocks of 3 axes"),
        ({"blocks": torch.ones(3, 7), "on_input": True}, "7 numbers are no upper triangle"),
        ({"blocks": torch.ones(3, 4, 4), "rescale": torch.ones(11, 1)}, "expected 12 numbers in `rescale`"),
        ({"blocks": torch.ones(3, 4, 4), "target_shape": (11, 4)}, r"the rows of a weight of \(11, 4\)"),
        ({"blocks": torch.ones(3, 6), "on_input": True, "target_shape": (4, 11)}, "the columns of a weight"),
    ],
)
def test_parts_that_do_not_join_are_refused(parts: dict[str, Any], problem: str) -> None:
    with pytest.raises(FormatError, match=f"an OFT of blocks .* has no meaning: .*{problem}"):
        OftDelta(**parts)
