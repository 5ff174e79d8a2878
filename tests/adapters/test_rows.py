"""Layers put together along their rows, and taken apart again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from lorry.adapters.rows import join_rows, split_blocks
from lorry.algebra import (
    Delta,
    DoraDelta,
    FullDelta,
    Ia3Delta,
    LohaDelta,
    LokrDelta,
    LoraDelta,
    PartsDelta,
    cut_rows,
)

ROWS = (4, 3, 5)
SPANS = ((0, 4), (4, 7), (7, 12))


def lora(out: int, rank: int = 2, alpha: float | None = 1.5, seed: int = 0) -> LoraDelta:
    torch.manual_seed(seed + out)
    return LoraDelta(torch.randn(rank, 6), torch.randn(out, rank), None, alpha)


def assert_joins(joined: Delta | None, parts: Sequence[Delta | None]) -> None:
    """The rows of the whole are those of the parts, or zeros, bit for bit but for sums in another order."""
    assert joined is not None
    for part, (first, last) in zip(parts, SPANS, strict=True):
        expected = torch.zeros(last - first, 6) if part is None else part.weight()
        torch.testing.assert_close(joined.weight()[first:last], expected, rtol=1e-6, atol=1e-7)


def assert_same_loras(found: Sequence[Delta | None] | None, expected: Sequence[Delta | None]) -> None:
    assert found is not None
    for one, two in zip(found, expected, strict=True):
        assert (one is None) == (two is None)
        if isinstance(one, LoraDelta) and isinstance(two, LoraDelta):
            assert (one.alpha, one.rank_stabilised) == (two.alpha, two.rank_stabilised)
            assert torch.equal(one.down, two.down)
            assert torch.equal(one.up, two.up)


@pytest.mark.parametrize(
    "parts",
    [
        [lora(4), lora(3, seed=1), lora(5, seed=2)],
        [lora(4, rank=1, alpha=2.0), lora(3, rank=3, alpha=6.0), lora(5, rank=2, alpha=4.0)],
        [lora(4, alpha=None), None, lora(5, alpha=None)],
        [None, lora(3), None],
    ],
    ids=["alike", "unlike ranks", "one missing", "one alone"],
)
def test_loras_of_their_own_become_one_with_blocks_and_are_told_apart_again(
    parts: list[Delta | None],
) -> None:
    joined = join_rows(parts, ROWS)
    assert_joins(joined, parts)
    assert joined is not None
    assert joined.rank == sum(part.rank or 0 for part in parts if part is not None)
    assert_same_loras(split_blocks(joined, ROWS), parts)


def with_zeros(delta: LoraDelta, *columns: int) -> LoraDelta:
    up = delta.up.clone()
    up[:, list(columns)] = 0
    return LoraDelta(delta.down, up, None, delta.alpha)


@pytest.mark.parametrize(
    "parts",
    [
        [with_zeros(lora(4, rank=3), 2), with_zeros(lora(3, rank=3, seed=1), 0), lora(5, rank=3, seed=2)],
        [lora(4), with_zeros(lora(3, seed=1), 0, 1), lora(5, seed=2)],
        [with_zeros(lora(4, rank=1, alpha=2.0), 0), lora(3, rank=1, alpha=2.0), lora(5, rank=1, alpha=2.0)],
        [with_zeros(lora(4, rank=2, alpha=4.0), 1), lora(3, rank=1, alpha=2.0), lora(5, rank=1, alpha=2.0)],
        [with_zeros(lora(4, rank=3, alpha=6.0), 1, 2), None, lora(5, rank=3, alpha=6.0)],
    ],
    ids=["at borders", "all of one", "all of the first", "unlike ranks", "one missing"],
)
def test_ranks_whose_column_is_all_zeros_are_kept_and_stay_with_their_layer(
    parts: list[LoraDelta | None],
) -> None:
    joined = join_rows(parts, ROWS)
    assert joined is not None
    assert_same_loras(split_blocks(joined, ROWS), parts)


def test_what_a_fused_lora_was_cut_into_becomes_that_lora_again() -> None:
    whole = lora(12, rank=4, alpha=3.0)
    parts = [cut_rows(whole, (span,)) for span in SPANS]
    joined = join_rows(parts, ROWS)
    assert isinstance(joined, LoraDelta)
    assert (joined.alpha, joined.rank) == (3.0, 4)
    assert torch.equal(joined.down, whole.down)
    assert torch.equal(joined.up, whole.up)
    assert split_blocks(joined, ROWS) is None


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_loras_are_joined_as_others_are(dtype: torch.dtype) -> None:
    whole = cast_to(dtype, lora(12, rank=4, alpha=3.0))
    joined = join_rows([cut_rows(whole, (span,)) for span in SPANS], ROWS)
    assert isinstance(joined, LoraDelta)
    assert joined.down.dtype == dtype
    assert_same_loras([cast_to(torch.float32, joined)], [cast_to(torch.float32, whole)])
    parts = [cast_to(dtype, part) for part in (lora(4), lora(3, seed=1), lora(5, seed=2))]
    joined = join_rows(parts, ROWS)
    assert joined is not None
    assert_joins(cast_to(torch.float32, joined), [cast_to(torch.float32, part) for part in parts])


def cast_to(dtype: torch.dtype, delta: Delta) -> Delta:
    return delta.with_tensors({name: tensor.to(dtype) for name, tensor in delta.tensors().items()})


def test_a_layer_that_a_fused_lora_leaves_alone_gets_none() -> None:
    whole = lora(12, rank=4)
    up = whole.up.clone()
    up[4:7] = 0
    found = split_blocks(LoraDelta(whole.down, up, None, 1.5), ROWS)
    assert found is not None
    assert [part is None for part in found] == [False, True, False]
    joined = join_rows(found, ROWS)
    assert isinstance(joined, LoraDelta)
    assert torch.equal(joined.up, up)


def test_an_untrained_lora_of_zeros_stays_whole() -> None:
    assert split_blocks(LoraDelta(torch.randn(2, 6), torch.zeros(12, 2)), ROWS) is None


@pytest.mark.parametrize(
    "parts",
    [
        [lora(4, alpha=1.0), lora(3, alpha=2.0), lora(5, alpha=1.0)],
        [lora(4), FullDelta(torch.randn(3, 6)), lora(5)],
        [LokrDelta(torch.randn(2, 3), torch.randn(2, 2)), None, None],
        [
            LohaDelta(torch.randn(4, 2), torch.randn(2, 6), torch.randn(4, 2), torch.randn(2, 6)),
            None,
            None,
        ],
    ],
    ids=["unlike scales", "two families", "LoKr", "LoHa of one"],
)
def test_what_has_no_common_form_is_not_joined(parts: list[Delta | None]) -> None:
    assert join_rows(parts, ROWS) is None


def test_other_families_come_together_as_they_were_cut() -> None:
    loha = LohaDelta(torch.randn(12, 2), torch.randn(2, 6), torch.randn(12, 2), torch.randn(2, 6), alpha=1.0)
    full, base = FullDelta(torch.randn(12, 6)), torch.randn(12, 6)
    dora = DoraDelta(lora(12), torch.rand(12) + 1)
    vector = Ia3Delta(torch.randn(12), target_shape=(12, 6))
    with_bias = PartsDelta(lora(12), FullDelta(torch.randn(12)))
    for whole in (loha, full, dora, vector, with_bias):
        joined = join_rows([cut_rows(whole, (span,)) for span in SPANS], ROWS)
        assert joined is not None, whole.family
        assert torch.equal(joined.weight(base), whole.weight(base))
        one, two = joined.part("bias"), whole.part("bias")
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            assert torch.equal(one.weight(), two.weight())


def test_full_differences_leave_zeros_for_a_layer_without() -> None:
    parts = [FullDelta(torch.randn(4, 6)), None, FullDelta(torch.randn(5, 6))]
    assert_joins(join_rows(parts, ROWS), parts)
