"""Layers under the names of a transformer's original checkpoint, as the layers that they are in diffusers.

What is one layer in one (`double_blocks.0.img_attn.qkv`) is several in the other: adapters that came in both namings
can be put beside each other only after their rows have been taken apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from lorry.adapters import Adapter, Entry
from lorry.adapters.rows import split_blocks
from lorry.algebra import Delta, cut_rows
from lorry.binding.bases import base_of_adapter
from lorry.binding.tables import Piece, find_pieces
from lorry.errors import UnsupportedAdapterError
from lorry.names import DENOISER, DENOISERS, Target


def with_common_layers(adapters: Sequence[Adapter]) -> list[Adapter]:
    """Return adapters with layers of one naming: as they are where all have one, else all in diffusers' names.

    Raises:
        UnsupportedAdapterError: a fused layer's delta cannot be cut.
    """
    renamed = [with_diffusers_names(adapter) for adapter in adapters]
    original = [own is not adapter for own, adapter in zip(renamed, adapters, strict=True)]
    return list(adapters) if all(original) else renamed


def with_diffusers_names(adapter: Adapter) -> Adapter:
    """Return an adapter of a known transformer in diffusers' names; itself where none of its layers has another one.

    Raises:
        UnsupportedAdapterError: a fused layer's delta cannot be cut.
    """
    base = base_of_adapter(adapter)
    if base is None or base.transformer is None:
        return adapter
    entries: list[Entry] = []
    for entry in adapter.entries:
        is_denoiser = entry.target.component in (DENOISER, *DENOISERS)
        pieces = find_pieces(base.transformer, entry.target.path) if is_denoiser else None
        entries += [entry] if pieces is None else _apart(entry, pieces, adapter.source)
    return adapter if entries == list(adapter.entries) else replace(adapter, entries=tuple(entries))


def _apart(entry: Entry, pieces: Sequence[Piece], source: str) -> Iterator[Entry]:
    rows = entry.delta.shape[0]
    unit = rows // sum(piece.share for piece in pieces)
    counts = [piece.share * unit for piece in pieces]
    if sum(counts) != rows or any(piece.of > 1 for piece in pieces) or len(pieces) == 1:
        yield replace(entry, target=_target(entry, pieces[0])) if len(pieces) == 1 else entry
        return
    try:
        parts = split_blocks(entry.delta, counts) or _cut(entry.delta, counts)
    except UnsupportedAdapterError as error:
        error.add_note(f"at {entry.target}, of {source}")
        raise
    for piece, part in zip(pieces, parts, strict=True):
        if part is not None:
            yield replace(entry, target=_target(entry, piece), delta=part)


def _cut(delta: Delta, counts: Sequence[int]) -> list[Delta]:
    starts = [sum(counts[:number]) for number in range(len(counts))]
    return [cut_rows(delta, ((start, start + count),)) for start, count in zip(starts, counts, strict=True)]


def _target(entry: Entry, piece: Piece) -> Target:
    return Target(entry.target.component, piece.path)
