"""Some rows of a delta: the same numbers as those rows of the whole, in every family that can be cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from algebra.contract import check_close, check_contract
from lorry.algebra import (
    BoftDelta,
    Delta,
    DoraDelta,
    FullDelta,
    GloraDelta,
    HraDelta,
    Ia3Delta,
    LohaDelta,
    LokrDelta,
    LoraDelta,
    OftDelta,
    PartsDelta,
    ReplaceDelta,
    RowsDelta,
    Spans,
    StackedDelta,
    VeraDelta,
    cut_rows,
    pad_channels,
)
from lorry.errors import UnsupportedAdapterError

OUT, IN, RANK = 24, 8, 3
SPANS: tuple[Spans, ...] = (((0, 8),), ((8, 24),), ((12, 24), (0, 12)), ((4, 8), (16, 20)))
"""A first part, an unequal second one, exchanged halves, and the rows of one head out of every two."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64
    )


def lora(out: int = OUT, alpha: float = 2.0) -> LoraDelta:
    return LoraDelta(noise(RANK, IN), noise(out, RANK), alpha=alpha)


def loha(core: bool = False) -> LohaDelta:
    if not core:
        return LohaDelta(
            noise(OUT, RANK), noise(RANK, IN), noise(OUT, RANK, seed=1), noise(RANK, IN, seed=1), alpha=2
        )
    sides = [noise(RANK, OUT), noise(RANK, IN), noise(RANK, OUT, seed=1), noise(RANK, IN, seed=1)]
    return LohaDelta(*sides, t1=noise(RANK, RANK, 3, 3), t2=noise(RANK, RANK, 3, 3, seed=1), alpha=2)


def lokr(rows: int) -> LokrDelta:
    """A LoKr whose second matrix has `rows` rows: it cuts where they divide the borders."""
    return LokrDelta(w1=noise(OUT // rows, 2), w2_a=noise(rows, RANK), w2_b=noise(RANK, IN // 2), alpha=2)


ADAPTS: dict[str, tuple[Delta, tuple[int, ...]]] = {
    "lora": (lora(), (OUT, IN)),
    "conv": (LoraDelta(noise(RANK, IN, 3, 3), noise(OUT, RANK, 1, 1), alpha=2.0), (OUT, IN, 3, 3)),
    "tucker": (
        LoraDelta(noise(RANK, IN, 1, 1), noise(OUT, RANK, 1, 1), noise(RANK, RANK, 3, 3), 2.0),
        (OUT, IN, 3, 3),
    ),
    "loha": (loha(), (OUT, IN)),
    "loha conv": (
        replace(loha(), w1_b=noise(RANK, IN * 9), w2_b=noise(RANK, IN * 9, seed=1)),
        (OUT, IN, 3, 3),
    ),
    "loha tucker": (loha(core=True), (OUT, IN, 3, 3)),
    "lokr": (lokr(rows=4), (OUT, IN)),
    "lokr in factors": (
        LokrDelta(w1_a=noise(6, RANK), w1_b=noise(RANK, 2), w2=noise(4, 4), alpha=2.0),
        (OUT, IN),
    ),
    "ia3 rows": (Ia3Delta(noise(OUT, 1)), (OUT, IN)),
    "ia3 columns": (Ia3Delta(noise(1, IN), on_input=True, neutral=1.0), (OUT, IN)),
    "glora": (
        GloraDelta(noise(IN, RANK), noise(RANK, IN), noise(OUT, RANK), noise(RANK, IN), 2.0),
        (OUT, IN),
    ),
    "glora old": (
        GloraDelta(noise(RANK, IN), noise(IN, RANK), noise(RANK, IN), noise(OUT, RANK), 2.0, old_layout=True),
        (OUT, IN),
    ),
    "oft rows": (OftDelta(noise(OUT // 4, 4, 4), rescale=noise(OUT, 1)), (OUT, IN)),
    "oft columns": (OftDelta(noise(IN // 4, 6), on_input=True, neumann_terms=5), (OUT, IN)),
    "oft rows, limited": (OftDelta(noise(OUT // 4, 4, 4), constraint=0.1), (OUT, IN)),
    "oft rows, packed, each limited": (
        OftDelta(noise(OUT // 4, 6), block_norm=0.3, constraint=0.1),
        (OUT, IN),
    ),
    "oft columns, limited": (OftDelta(noise(IN // 4, 6), on_input=True, constraint=0.1), (OUT, IN)),
    "boft rows, limited": (BoftDelta(noise(2, 12, 2, 2), noise(OUT, 1), constraint=0.1), (OUT, IN)),
    "boft columns, limited": (BoftDelta(noise(2, 2, 4, 4), on_input=True, constraint=0.1), (OUT, IN)),
    "boft columns": (BoftDelta(noise(2, 2, 4, 4), noise(OUT, 1), on_input=True), (OUT, IN)),
    "dora rows": (DoraDelta(lora(), noise(OUT, 1).abs()), (OUT, IN)),
    "dora over lokr": (DoraDelta(lokr(rows=3), noise(OUT, 1).abs()), (OUT, IN)),
    "hra": (HraDelta(noise(IN, RANK)), (OUT, IN)),
    "vera": (VeraDelta(noise(OUT), noise(RANK), noise(RANK, 2 * IN), noise(2 * OUT, RANK)), (OUT, IN)),
    "full": (FullDelta(noise(OUT, IN)), (OUT, IN)),
    "replacement": (ReplaceDelta(noise(OUT, IN)), (OUT, IN)),
}


def whole(name: str) -> tuple[Delta, Tensor]:
    delta, shape = ADAPTS[name]
    fitted = delta.fitted(shape)
    assert fitted is not None
    return fitted, noise(*shape, seed=9)


def taken(tensor: Tensor, spans: Spans) -> Tensor:
    return torch.cat([tensor[first:last] for first, last in spans])


@pytest.mark.parametrize("spans", SPANS, ids=str)
@pytest.mark.parametrize("name", ADAPTS)
def test_the_rows_of_a_delta_are_those_of_the_whole(name: str, spans: Spans) -> None:
    delta, base = whole(name)
    for strength in (1.0, -0.4):
        expected = taken(delta.weight(base, torch.float64, strength), spans)
        cut = cut_rows(delta, spans)
        assert cut.shape == expected.shape
        assert (cut.rank, cut.rank_scale, cut.family) == (delta.rank, delta.rank_scale, delta.family)
        check_close(cut.weight(taken(base, spans), torch.float64, strength), expected, 1e-12)


@pytest.mark.parametrize(
    "name", ["lora", "conv", "loha", "full", "ia3 rows", "dora rows", "lokr", "oft rows"]
)
def test_a_part_stays_in_its_family(name: str) -> None:
    delta, base = whole(name)
    cut = cut_rows(delta, ((8, 24),))
    assert type(cut) is type(delta)
    check_contract(cut, base[8:])


def test_the_parts_of_a_lora_share_its_down_and_keep_alpha_and_rank() -> None:
    delta = lora()
    cut = cut_rows(delta, ((8, 16),))
    assert isinstance(cut, LoraDelta)
    assert cut.down is delta.down
    assert (cut.alpha, cut.rank) == (delta.alpha, delta.rank)
    assert cut.up.data_ptr() == delta.up[8].data_ptr()


def test_a_lokr_that_is_cut_within_a_block_is_multiplied_out_first() -> None:
    delta, base = lokr(rows=6), noise(OUT, IN)
    for spans in SPANS:
        cut = cut_rows(delta, spans)
        check_close(cut.weight(None, torch.float64), taken(delta.weight(None, torch.float64), spans), 1e-12)
    cut = cut_rows(delta, ((8, 24),))
    assert isinstance(cut, RowsDelta)
    check_contract(cut, base[8:])


@pytest.mark.parametrize(
    "delta",
    [
        DoraDelta(lora(), noise(1, IN).abs(), on_input=True),
        OftDelta(noise(OUT // 6, 6, 6)),
        BoftDelta(noise(2, 4, 6, 6)),
    ],
    ids=["dora of columns", "oft across the border", "boft across the border"],
)
def test_what_needs_the_other_rows_of_the_base_is_refused_by_name(delta: Delta) -> None:
    fitted = delta.fitted((OUT, IN))
    assert fitted is not None
    with pytest.raises(UnsupportedAdapterError, match=rf"{delta.family} of \(24, 8\) .* cannot be cut"):
        cut_rows(fitted, ((0, 8),))


def test_a_bias_is_cut_with_its_weight() -> None:
    both = PartsDelta(lora(), FullDelta(noise(OUT)))
    cut = cut_rows(both, ((8, 24),))
    weight, bias = cut.part("weight"), cut.part("bias")
    assert weight is not None
    assert bias is not None
    check_close(weight.weight(None, torch.float64), lora().weight(None, torch.float64)[8:], 1e-12)
    assert torch.equal(bias.weight(None, torch.float64), noise(OUT)[8:])


# --- the reverse ----------------------------------------------------------------------------------------------------


def test_stacked_deltas_have_each_its_rows_and_zeros_between() -> None:
    parts: tuple[Delta, ...] = (lora(8), lora(4, alpha=9.0), lokr(rows=6))
    stacked = StackedDelta(parts, ((0, 8), (10, 14), (16, 40)), (40, IN))
    expected = torch.zeros(40, IN, dtype=torch.float64)
    for part, (first, last) in zip(parts, stacked.spans, strict=True):
        expected[first:last] = part.weight(None, torch.float64)
    check_close(stacked.weight(None, torch.float64), expected, 1e-12)
    assert stacked.low_rank() is None
    check_contract(stacked, torch.zeros(40, IN, dtype=torch.float64))


def test_stacked_loras_have_factors_that_keep_the_strength_of_each() -> None:
    stacked = StackedDelta((lora(8), lora(4, alpha=9.0)), ((0, 8), (8, 12)), (12, IN))
    pair = stacked.low_rank(torch.float64)
    assert pair is not None
    assert pair.rank == 2 * RANK
    check_close(pair.up @ pair.down * pair.scale, stacked.weight(None, torch.float64), 1e-12)


def test_stacked_deltas_see_only_their_rows_of_the_base() -> None:
    base = noise(32, IN)
    parts = (DoraDelta(lora(), noise(OUT).abs()), ReplaceDelta(noise(8, IN)))
    stacked = StackedDelta(parts, ((0, 24), (24, 32)), (32, IN))
    whole = torch.cat([parts[0].weight(base[:24], torch.float64), parts[1].weight(base[24:], torch.float64)])
    check_close(stacked.weight(base, torch.float64), whole, 1e-12)
    with pytest.raises(ValueError, match="needs `base`"):
        stacked.weight()


# --- replacement and wider inputs -----------------------------------------------------------------------------------


def test_a_replacement_leaves_its_value_whatever_the_strength_but_nothing_at_0() -> None:
    base, value = noise(OUT).float(), noise(OUT, seed=3).float()
    delta = ReplaceDelta(value)
    for strength in (1.0, 0.3, -2.0):
        check_close(base + delta.weight(base, strength=strength), value.double(), 1e-6)
    check_contract(ReplaceDelta(noise(OUT, IN)), noise(OUT, IN, seed=2))
    assert delta.fitted((OUT, IN)) is None


@pytest.mark.parametrize(
    ("delta", "shape"),
    [
        (LoraDelta(noise(RANK, 4, 3, 3), noise(OUT, RANK, 1, 1)), (OUT, 9, 3, 3)),
        (FullDelta(noise(OUT, 4)), (OUT, 9)),
        (PartsDelta(lora(), FullDelta(noise(OUT))), (OUT, 9)),
        (LohaDelta(noise(OUT, 1), noise(1, 36), noise(OUT, 1), noise(1, 36)), (OUT, 9, 3, 3)),
        (lokr(rows=6), (OUT, 9)),
    ],
)
def test_a_delta_for_fewer_channels_leaves_the_others_alone(delta: Delta, shape: tuple[int, ...]) -> None:
    channels = delta.shape[1] if len(delta.shape) == len(shape) else delta.shape[1] // 9
    padded = pad_channels(delta, shape)
    assert padded is not None
    weight = padded.weight(None, torch.float64)
    assert weight.shape == shape
    assert torch.equal(weight[:, :channels].flatten(1), delta.weight(None, torch.float64).flatten(1))
    assert not weight[:, channels:].any()
    for pair in (padded.low_rank(torch.float64), padded.exact_factors(torch.float64)):
        if pair is not None:
            check_close(
                (pair.up.flatten(1) @ pair.down.flatten(1) * pair.scale).reshape(shape), weight, 1e-12
            )
    check_contract(padded, noise(*shape).float())
    assert pad_channels(delta, (OUT + 1, *shape[1:])) is None
    assert pad_channels(delta, (OUT, channels - 1, *shape[2:])) is None
