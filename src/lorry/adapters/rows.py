"""One delta of several layers' rows, and several of one's: what a file with fused layers holds, exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lorry.algebra import (
    Delta,
    DoraDelta,
    FullDelta,
    Ia3Delta,
    LohaDelta,
    LoraDelta,
    PartsDelta,
    cut_rows,
    same_numbers,
)

Rows = Sequence[int]
"""How many rows each layer has."""


def join_rows(deltas: Sequence[Delta | None], rows: Rows) -> Delta | None:
    """Return one delta with the rows of several, in their order, or None where no family says exactly that.

    LoRAs that share `down` and alpha (what a fused LoRA was cut into) are put together as they were. Others become one
    of the ranks' sum: `down` is theirs one below the other, `up` has a block for each and zeros elsewhere, and alpha is
    what gives the sum of the ranks the same scale.

    Args:
        deltas: of one family; None for a layer without one, whose rows become zeros.
        rows: of each layer.
    """
    known = [delta for delta in deltas if delta is not None]
    if not known or any(type(delta) is not type(known[0]) for delta in known):
        return None
    joiner = _JOINERS.get(type(known[0]))
    return None if joiner is None else joiner(deltas, rows)


def join_shared(deltas: Sequence[Delta], rows: Rows) -> Delta | None:
    """Return the one delta that several layers' were cut from, or None where they were not, or are headers alone."""
    if any(tensor.is_meta for delta in deltas for tensor in delta.tensors().values()):
        return None
    joined = join_rows(deltas, rows)
    return joined if joined is not None and joined.rank == deltas[0].rank else None


def split_blocks(delta: Delta, rows: Rows) -> list[Delta | None] | None:
    """Return the layers' own LoRAs that `join_rows` made a LoRA of, or None where it was made otherwise.

    It is undone where each column of `up` has numbers in the rows of one layer alone, and where a layer has no rank at
    all (None in the result). A column of zeros goes to the layer of its neighbours, so that no rank is lost. The layers
    of a LoRA that was trained fused share `down`. A DoRA of rows, and a LoRA with a bias, are undone as their LoRA.
    """
    if isinstance(delta, PartsDelta):
        return _split_parts(delta, rows)
    if isinstance(delta, DoraDelta):
        return None if delta.on_input else _split_doras(delta, rows)
    if not isinstance(delta, LoraDelta) or delta.mid is not None or delta.up.is_meta:
        return None
    blocks = delta.up.flatten(1).split(list(rows))
    used = torch.stack([block.ne(0).any(dim=0) for block in blocks])
    if not used.any() or (used.sum(dim=0) > 1).any():
        return _without_empty(delta, rows, used)
    owners = torch.tensor(_owners(used), device=used.device)
    return [_own(delta, block, owners == layer) for layer, block in enumerate(blocks)]


def _owners(used: Tensor) -> list[int]:
    """Return the layer of each column, of which no more than one layer uses any.

    One that none uses is part of a layer's share where all shares are equal; else its left neighbour's, or the first's.
    """
    layers, columns = used.shape
    found = [int(column.nonzero()) if column.any() else None for column in used.T]
    if columns % layers == 0:
        equal = [column * layers // columns for column in range(columns)]
        if all(owner in (None, share) for owner, share in zip(found, equal, strict=True)):
            return equal
    last = next(owner for owner in found if owner is not None)
    owners = []
    for owner in found:
        last = last if owner is None else owner
        owners.append(last)
    return owners


def _split_doras(delta: DoraDelta, rows: Rows) -> list[Delta | None] | None:
    inner = split_blocks(delta.inner, rows)
    if inner is None or None in inner:
        return None
    magnitudes = delta.magnitude.flatten().split(list(rows))
    rest = [1] * (delta.magnitude.ndim - 1)
    return [
        DoraDelta(part, magnitude.reshape(-1, *rest).contiguous(), False)
        for part, magnitude in zip(inner, magnitudes, strict=True)
        if part is not None
    ]


def _split_parts(delta: PartsDelta, rows: Rows) -> list[Delta | None] | None:
    weights = None if delta.on_weight is None else split_blocks(delta.on_weight, rows)
    if weights is None:
        return None
    ends = list(accumulate(rows))
    biases = [cut_rows(delta.on_bias, ((end - count, end),)) for end, count in zip(ends, rows, strict=True)]
    return [
        None if weight is None and bias.adds_nothing() else PartsDelta(weight, bias)
        for weight, bias in zip(weights, biases, strict=True)
    ]


def _without_empty(delta: LoraDelta, rows: Rows, used: Tensor) -> list[Delta | None] | None:
    """The layers of a LoRA that they share, where some of them have none."""
    empty = ~used.any(dim=1)
    if not used.any() or not empty.any():
        return None
    ups = delta.up.split(list(rows))
    return [None if none else replace(delta, up=up) for up, none in zip(ups, empty.tolist(), strict=True)]


def _own(delta: LoraDelta, block: Tensor, columns: Tensor) -> LoraDelta | None:
    rank = int(columns.sum())
    if rank == 0:
        return None
    alpha = None if delta.alpha is None else delta.rank_scale * rank
    up = block[:, columns].contiguous().reshape(block.shape[0], rank, *delta.up.shape[2:])
    return LoraDelta(delta.down[columns].contiguous(), up, None, alpha)


def _join_loras(deltas: Sequence[LoraDelta | None], rows: Rows) -> LoraDelta | None:
    known = [delta for delta in deltas if delta is not None]
    first = known[0]
    if any(delta.mid is not None or delta.down.dtype != first.down.dtype for delta in known):
        return None
    if all(_shares(first, delta) for delta in known):
        ups = [_zeros(first.up, count) if d is None else d.up for d, count in zip(deltas, rows, strict=True)]
        return replace(first, up=torch.cat(ups))
    if len({delta.rank_scale for delta in known}) > 1:
        return None
    rank = sum(delta.rank for delta in known)
    alpha = None if all(delta.alpha is None for delta in known) else first.rank_scale * rank
    joined = LoraDelta(torch.cat([delta.down for delta in known]), _diagonal(deltas, rows, rank), None, alpha)
    return joined if joined.rank_scale == first.rank_scale else None


def _shares(one: LoraDelta, other: LoraDelta) -> bool:
    same = (one.alpha, one.rank_stabilised) == (other.alpha, other.rank_stabilised)
    return same and same_numbers(one.down, other.down)


def _zeros(like: Tensor, count: int) -> Tensor:
    return like.new_zeros(count, *like.shape[1:])


def _diagonal(deltas: Sequence[LoraDelta | None], rows: Rows, rank: int) -> Tensor:
    like = next(delta.up for delta in deltas if delta is not None)
    up = like.new_zeros(sum(rows), rank, *like.shape[2:])
    row = column = 0
    for delta, count in zip(deltas, rows, strict=True):
        if delta is not None:
            up[row : row + count, column : column + delta.rank] = delta.up
            column += delta.rank
        row += count
    return up


def _join_full(deltas: Sequence[FullDelta | None], rows: Rows) -> FullDelta | None:
    first = next(delta for delta in deltas if delta is not None)
    if any(d is not None and (d.scale, d.diff.dtype) != (first.scale, first.diff.dtype) for d in deltas):
        return None
    parts = [_zeros(first.diff, n) if d is None else d.diff for d, n in zip(deltas, rows, strict=True)]
    return replace(first, diff=torch.cat(parts))


def _join_lohas(deltas: Sequence[LohaDelta | None], rows: Rows) -> LohaDelta | None:
    known = [delta for delta in deltas if delta is not None]
    first = known[0]
    shared = ("w1_b", "w2_b")
    if len(known) < len(deltas) or any(delta.t1 is not None or delta.alpha != first.alpha for delta in known):
        return None
    if not all(same_numbers(getattr(d, name), getattr(first, name)) for d in known for name in shared):
        return None
    one, two = (torch.cat([getattr(delta, name) for delta in known]) for name in ("w1_a", "w2_a"))
    shape = (sum(rows), *first.shape[1:])
    return replace(first, w1_a=one, w2_a=two, target_shape=shape)


def _join_vectors(deltas: Sequence[Ia3Delta | None], rows: Rows) -> Ia3Delta | None:
    known = [delta for delta in deltas if delta is not None]
    first = known[0]
    if len(known) < len(deltas) or any((d.on_input, d.neutral) != (False, first.neutral) for d in known):
        return None
    shape = None if first.target_shape is None else (sum(rows), *first.target_shape[1:])
    return replace(first, vector=torch.cat([d.vector.flatten() for d in known]), target_shape=shape)


def _join_doras(deltas: Sequence[DoraDelta | None], rows: Rows) -> DoraDelta | None:
    known = [delta for delta in deltas if delta is not None]
    if len(known) < len(deltas) or any(delta.on_input for delta in known):
        return None
    inner = join_rows([delta.inner for delta in known], rows)
    magnitudes = [delta.magnitude.flatten() for delta in known]
    return None if inner is None else DoraDelta(inner, torch.cat(magnitudes))


def _join_parts(deltas: Sequence[PartsDelta | None], rows: Rows) -> PartsDelta | None:
    on_bias = join_rows([None if d is None else d.on_bias for d in deltas], rows)
    weights = [None if delta is None else delta.on_weight for delta in deltas]
    on_weight = join_rows(weights, rows) if any(weight is not None for weight in weights) else None
    if on_bias is None or (on_weight is None and any(weight is not None for weight in weights)):
        return None
    return PartsDelta(on_weight, on_bias)


_JOINERS: dict[type[Delta], Callable[[Any, Rows], Delta | None]] = {
    LoraDelta: _join_loras,
    FullDelta: _join_full,
    LohaDelta: _join_lohas,
    Ia3Delta: _join_vectors,
    DoraDelta: _join_doras,
    PartsDelta: _join_parts,
}
