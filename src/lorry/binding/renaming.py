"""An adapter under other names for its base model's modules: diffusers' own, or the original checkpoint's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import final

from torch import nn

from lorry.adapters import Adapter, Entry
from lorry.adapters.rows import Rows, join_rows, split_blocks
from lorry.algebra import Delta, Span, count_rows, cut_rows
from lorry.binding.draft import equal
from lorry.binding.exchanged import with_meant_names
from lorry.binding.index import ModuleIndex
from lorry.binding.places import Place, other_inputs, places_of
from lorry.binding.plan import bind
from lorry.binding.routes import routes
from lorry.binding.tables import Names, Piece
from lorry.binding.targets import weight_shape
from lorry.errors import UnsupportedAdapterError
from lorry.names import TEXT_ENCODERS, Target

Models = Mapping[str, nn.Module]
Join = Callable[[str, Sequence[Delta | None], Rows], Delta]
"""Makes one delta of those for the layers that an original module was split into; it is told that module's name."""


def in_names_of_model(adapter: Adapter, models: Models) -> Adapter:
    """Return an adapter with the paths of a model's own modules, one entry for each.

    Raises:
        BindingError: it does not fit the models.
    """
    indexes = {name: ModuleIndex(model) for name, model in models.items()}
    adapter = _with_own_components(adapter, indexes, models)
    split = replace(adapter, entries=tuple(part for e in adapter.entries for part in _apart(e, indexes)))
    plan = bind(split, models)
    entries = [
        Entry(Target(component, path), delta, (), "rank")
        for component, deltas in plan.deltas.items()
        for path, delta in deltas.items()
    ]
    return replace(
        adapter,
        entries=tuple(sorted(entries, key=lambda entry: entry.target)),
        block_names="diffusers",
        text_encoders=_encoders(models),
    )


def in_original_names(
    adapter: Adapter, models: Models, join: Join | None = None, *, apart: bool = False
) -> Adapter:
    """Return an adapter with the names of the original checkpoint, where these differ from the model's own.

    Args:
        adapter: in whatever names.
        models: by component.
        join: what makes one delta of several for a module that the original has fused; `join_exactly` when None.
        apart: leave such layers by themselves, under the name of the fused one and their numbers.

    Raises:
        BindingError: it does not fit the models.
        UnsupportedAdapterError: layers that the original has fused have deltas which cannot be put together.
    """
    if apart:
        adapter = in_names_of_model(adapter, models)
    entries: list[Entry] = []
    for component, found in _by_pieces(adapter, models).items():
        renaming = _Renaming(ModuleIndex(models[component]), join or join_exactly, apart)
        entries += [Entry(Target(component, name), delta, ()) for name, delta in renaming.named(found)]
    return replace(
        adapter,
        entries=tuple(sorted(entries, key=lambda entry: entry.target)),
        block_names="original",
        text_encoders=_encoders(models),
    )


def _encoders(models: Models) -> dict[str, str]:
    return {name: type(model).__name__ for name, model in models.items() if name in TEXT_ENCODERS}


def join_exactly(name: str, deltas: Sequence[Delta | None], rows: Rows) -> Delta:
    """Make one delta of several without a difference.

    Raises:
        UnsupportedAdapterError: there is no such delta.
    """
    joined = join_rows(deltas, rows)
    if joined is None:
        families = "+".join(sorted({delta.family for delta in deltas if delta is not None}))
        raise UnsupportedAdapterError(
            f"`{name}` is one layer in the original checkpoint and {len(deltas)} in diffusers' model; their {families} "
            "deltas have no common form. `--approximate` makes one LoRA of them."
        )
    return joined


def _with_own_components(adapter: Adapter, indexes: Mapping[str, ModuleIndex], models: Models) -> Adapter:
    """Return an adapter whose components and names are those that are meant on these models; others, as before."""
    found = routes(adapter, indexes, models)

    def named(entry: Entry) -> Iterator[Entry]:
        for component in found[entry.target.component] or (entry.target.component,):
            yield replace(entry, target=replace(entry.target, component=component))

    entries = tuple(other for entry in adapter.entries for other in named(entry))
    own = {name: (name,) for name in indexes}
    return with_meant_names(replace(adapter, entries=entries), indexes, own)


def _apart(entry: Entry, indexes: Mapping[str, ModuleIndex]) -> Iterator[Entry]:
    """Yield the layers' own LoRAs of a fused one that was made of such; else the entry as it is."""
    component = entry.target.component
    index = indexes.get(component)
    pieces = None if index is None else index.find_pieces(entry.target)
    places = () if index is None or pieces is None else places_of(pieces, index.modules)
    spans = [place.rows for place in places if place.rows is not None and place.into is None]
    rows = [count_rows(found) for found in spans]
    fits = 1 < len(spans) == len(places) and entry.delta.shape[0] == sum(rows)
    ordered = _in_order(entry.delta, [span for found in spans for span in found]) if fits else None
    parts = None if ordered is None else split_blocks(ordered, rows)
    if parts is None:
        yield entry
        return
    for place, part in zip(places, parts, strict=True):
        if part is not None:
            yield replace(entry, target=Target(component, place.path), delta=part)


def _in_order(delta: Delta, spans: Sequence[Span]) -> Delta | None:
    """Return a delta with all of its rows in the order of `spans`; None where its parts do not tell rows apart."""
    as_it_is = all(before[1] == after[0] for before, after in pairwise(spans))
    return delta if as_it_is else delta.rows(tuple(spans))


def _by_pieces(adapter: Adapter, models: Models) -> dict[str, dict[tuple[Piece, ...], Delta]]:
    """Return an adapter's deltas, fitted, by component and by the pieces that their rows are."""
    indexes = {name: ModuleIndex(model) for name, model in models.items()}
    found: dict[str, dict[tuple[Piece, ...], Delta]] = {}
    for entry in _with_own_components(adapter, indexes, models).entries:
        component = entry.target.component
        index = indexes.get(component)
        pieces = None if index is None else index.find_pieces(entry.target)
        delta = None if index is None or pieces is None else _fitted(entry.delta, index, pieces)
        if pieces is None or delta is None or adapter.unknown:
            bind(adapter, models)  # which says what is wrong
            raise UnsupportedAdapterError(f"{adapter.source}: {entry.target} does not fit this model.")
        first = found.setdefault(component, {}).setdefault(pieces, delta)
        if first is not delta and not equal(first, delta):
            raise UnsupportedAdapterError(f"{adapter.source}: {entry.target} is there twice, and differs.")
    return found


def _fitted(delta: Delta, index: ModuleIndex, pieces: Sequence[Piece]) -> Delta | None:
    """Return a delta fitted to its layer; as it is, where it is for the first layer of a model with other inputs."""
    whole, place = _whole(index, pieces), Place(pieces[0].path)
    fitted = delta.fitted(whole)
    if fitted is None and len(pieces) == 1 and other_inputs(delta, place, whole, index.modules) is not None:
        return delta
    return fitted


def _rows(index: ModuleIndex, piece: Piece) -> int:
    return (weight_shape(index.modules[piece.path]) or (0,))[0] // piece.of


def _whole(index: ModuleIndex, pieces: Sequence[Piece]) -> tuple[int, ...]:
    rest = (weight_shape(index.modules[pieces[0].path]) or (0,))[1:]
    return (sum(_rows(index, piece) for piece in pieces), *rest)


@final
class _Renaming:
    """Gives the deltas of one component the original names."""

    def __init__(self, index: ModuleIndex, join: Join, apart: bool) -> None:
        self.index, self.join, self.apart = index, join, apart
        names: Names = index.original
        self.by_pieces = {pieces: name for name, pieces in sorted(names.items(), reverse=True)}
        self.by_path: dict[str, str] = {}
        self.within: dict[str, list[tuple[str, Piece]]] = {}
        """By module, the names whose rows are some of it alone."""
        for name, pieces in sorted(names.items(), reverse=True):
            if len(pieces) == 1 and pieces[0].of > 1:
                self.within.setdefault(pieces[0].path, []).append((name, pieces[0]))
            else:
                self.by_path |= {piece.path: name for piece in pieces}

    def named(self, found: Mapping[tuple[Piece, ...], Delta]) -> Iterator[tuple[str, Delta]]:
        """Yield each delta under its original name, those of one original module together."""
        fused: dict[str, dict[str, Delta]] = {}
        for pieces, delta in found.items():
            whole, first = self._whole_of(pieces), pieces[0].path
            fused_apart = self.apart and whole is not None and len(self.index.original[whole]) > 1
            if pieces in self.by_pieces and not fused_apart:
                yield self.by_pieces[pieces], delta
            elif whole is not None:
                fused.setdefault(whole, {}).update(self._parts(pieces, delta))
            elif len(pieces) > 1:  # fused by a program, and in neither the original nor the model
                yield from self.named({(Piece(path),): part for path, part in self._parts(pieces, delta)})
            elif first in self.within:
                yield from self._apart(first, delta)
            else:
                yield first, delta
        for name, parts in fused.items():
            pieces = self.index.original[name]
            if self.apart and all(piece.of == 1 for piece in pieces):
                yield from ((f"{name}.{i}", parts[p.path]) for i, p in enumerate(pieces) if p.path in parts)
            else:
                yield name, self._fused(name, parts)

    def _whole_of(self, pieces: Sequence[Piece]) -> str | None:
        """The original module that fuses these layers, whole ones of the model, with others."""
        names = {self.by_path.get(piece.path) for piece in pieces if piece.of == 1}
        return names.pop() if len(names) == 1 and all(piece.of == 1 for piece in pieces) else None

    def _apart(self, path: str, delta: Delta) -> Iterator[tuple[str, Delta]]:
        """Yield the parts of a module's delta that the original has in modules of their own."""
        for name, piece in self.within[path]:
            size = _rows(self.index, piece)
            yield name, cut_rows(delta, ((piece.part * size, (piece.part + 1) * size),))

    def _parts(self, pieces: Sequence[Piece], delta: Delta) -> Iterator[tuple[str, Delta]]:
        first = 0
        for piece in pieces:
            last = first + _rows(self.index, piece)
            yield piece.path, delta if len(pieces) == 1 else cut_rows(delta, ((first, last),))
            first = last

    def _fused(self, name: str, parts: Mapping[str, Delta]) -> Delta:
        """Put whole modules together, one after the other, and their rows into the order that the original has."""
        pieces = self.index.original[name]
        paths = list(dict.fromkeys(piece.path for piece in pieces))
        rows = [_rows(self.index, Piece(path)) for path in paths]
        first = dict(zip(paths, accumulate(rows, initial=0), strict=False))
        sizes = [_rows(self.index, piece) for piece in pieces]
        starts = [first[p.path] + p.part * size for p, size in zip(pieces, sizes, strict=True)]
        deltas = [parts.get(path) for path in paths]
        whole = parts[paths[0]] if len(paths) == 1 else self.join(name, deltas, rows)
        spans = tuple((start, start + size) for start, size in zip(starts, sizes, strict=True))
        return _in_order(whole, spans) or cut_rows(whole, spans)
