"""Where the rows of a delta land in a model: on one module, on several, or on some rows of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import final

from torch import nn

from lorry.adapters.rows import join_shared
from lorry.algebra import (
    Delta,
    PartsDelta,
    Share,
    SharedDelta,
    Span,
    Spans,
    StackedDelta,
    cut_rows,
    pad_channels,
)
from lorry.binding.tables import Piece
from lorry.binding.targets import INPUTS, modules_at, weight_shape

FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "add_qkv_proj": ("add_q_proj", "add_k_proj", "add_v_proj"),
}
"""What `fuse_qkv_projections()` of a diffusers model makes of an attention's layers; it leaves those there, unused. The
last is Nunchaku's name for the second to last."""


def usual_names(paths: Iterable[str]) -> dict[str, tuple[Piece, ...]]:
    """Return names that programs have for an attention's layers in any model: its fused ones, and `to_out` for the
    layer in it.

    Trainers fuse the layers of a model and write the file as if the model were so.
    """
    known, found = set(paths), dict[str, tuple[Piece, ...]]()
    for path in known:
        parent, dot, name = path.rpartition(".")
        if path.endswith(".to_out.0"):
            found[parent] = (Piece(path),)
        for fused, parts in FUSED.items():
            names = [f"{parent}{dot}{part}" for part in parts]
            if name == parts[0] and known.issuperset(names) and f"{parent}{dot}{fused}" not in known:
                found[f"{parent}{dot}{fused}"] = tuple(map(Piece, names))
    return found


@final
@dataclass(frozen=True, slots=True)
class Place:
    """Where some rows of a delta land."""

    path: str
    """The module."""
    rows: Spans | None = None
    """The rows of the delta, in the order in which the module has them; None for all of them, as they are."""
    into: Span | None = None
    """The rows of the module, where the delta is for a part of them only; None for all."""


def places_of(pieces: Sequence[Piece], modules: Mapping[str, nn.Module]) -> tuple[Place, ...]:
    """Return where the rows of an original module land, which are those of `pieces` in their order."""
    if len(pieces) == 1 and pieces[0].of == 1:
        return (Place(pieces[0].path),)
    taken: dict[str, list[tuple[int, int, int]]] = {}
    row = 0
    for piece in pieces:
        size = (weight_shape(modules[piece.path]) or (0,))[0] // piece.of
        taken.setdefault(piece.path, []).append((piece.part * size, row, size))
        row += size
    return tuple(_place(path, sorted(found), modules[path]) for path, found in taken.items())


def _place(path: str, found: list[tuple[int, int, int]], module: nn.Module) -> Place:
    rows = tuple((start, start + size) for _, start, size in found)
    first, count = found[0][0], sum(size for _, _, size in found)
    whole = count == (weight_shape(module) or (0,))[0]
    return Place(path, rows, None if whole else (first, first + count))


def where_fused(place: Place, modules: Mapping[str, nn.Module]) -> Place:
    """Return the place in the fused layer that a model computes with instead of the one in `place`, if it does."""
    parent, _, name = place.path.rpartition(".")
    for fused, parts in FUSED.items():
        path = f"{parent}.{fused}"
        if name in parts and path in modules and computes_fused(modules[parent]):
            sizes = {part: (weight_shape(modules[f"{parent}.{part}"]) or (0,))[0] for part in parts}
            before = sum(sizes[part] for part in parts[: parts.index(name)])
            first, last = place.into or (0, sizes[name])
            return replace(place, path=path, into=(before + first, before + last))
    return place


def find_idle(model: nn.Module, layers: Mapping[str, nn.Module]) -> str | None:
    """Return the path of a layer of a model that is called no more, one of `layers` by path; None where all are called.

    `fuse_qkv_projections()` puts one layer in the place of an attention's three, and `unfuse_qkv_projections()` takes
    it out again. They do so with all attentions of a model: of each name, the first of `layers` is looked at.
    """
    first: dict[str, str] = {}
    for path in layers:
        first.setdefault(path.rpartition(".")[2], path)
    for fused, parts in FUSED.items():
        for path in (first[name] for name in (fused, *parts) if name in first):
            parent, _, name = path.rpartition(".")
            attention = modules_at(model, [parent]).get(parent)
            if attention is None or parts[1] not in attention._modules:
                continue  # it is gone with all its layers, or has never had the parts
            whole = attention._modules.get(fused)
            calls_whole = whole is not None and computes_fused(attention)
            is_called = calls_whole and whole is layers[path] if name == fused else not calls_whole
            if not is_called:
                return path
    return None


def joined(places: tuple[Place, ...], modules: Mapping[str, nn.Module]) -> tuple[Place, ...]:
    """Return one place for several that take all rows of a delta into all rows of one module, as they are."""
    if len(places) < 2 or any(place.into is None or place.rows != (place.into,) for place in places):
        return places
    ends = sorted(place.into for place in places if place.into is not None)
    follow = all(before[1] == after[0] for before, after in pairwise(ends))
    path = places[0].path
    whole = (ends[0][0], ends[-1][1]) == (0, (weight_shape(modules[path]) or (0,))[0])
    return (Place(path),) if whole and follow and len({place.path for place in places}) == 1 else places


def computes_fused(attention: nn.Module) -> bool:
    """Whether an attention computes with its fused layer. Older classes keep that one when they are unfused."""
    if FUSED.keys().isdisjoint(attention._modules):
        return False
    processor = type(getattr(attention, "processor", None)).__name__
    old = type(attention).__name__ == "Attention"
    return bool(getattr(attention, "fused_projections", False)) and (not old or processor.startswith("Fused"))


def place_shapes(
    places: Sequence[Place], modules: Mapping[str, nn.Module]
) -> dict[Place, tuple[int, ...] | None]:
    """Return the shape of what each place takes; None where its module can carry nothing."""
    shapes = {}
    for place in places:
        shape = weight_shape(modules[place.path])
        rows = None if place.into is None else place.into[1] - place.into[0]
        shapes[place] = shape if shape is None or rows is None else (rows, *shape[1:])
    return shapes


def whole_shape(shapes: Mapping[Place, tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """Return the shape of a delta for all of these places; None where one of them can carry nothing."""
    known = [shape for shape in shapes.values() if shape is not None]
    if not known or len(known) < len(shapes):
        return None
    return (sum(shape[0] for shape in known), *known[0][1:])


def placed_delta(delta: Delta, place: Place, whole: tuple[int, ...], places: Sequence[Place]) -> Delta | None:
    """Return the part of a delta that lands in `place`, or None where the shapes do not fit.

    Args:
        delta: what a file has for all of its module.
        place: where its rows go.
        whole: the shape that it must have, all rows together.
        places: where all of its rows go.

    Raises:
        UnsupportedAdapterError: the rows cannot be had without the rest.
    """
    fitted = delta.fitted(whole)
    if fitted is None or place.rows is None:
        return fitted
    if isinstance(fitted, PartsDelta) and fitted.on_weight is not None:
        return PartsDelta(_rows(fitted.on_weight, place.rows, places), cut_rows(fitted.on_bias, place.rows))
    return _rows(fitted, place.rows, places)


def _rows(delta: Delta, rows: Spans, places: Sequence[Place]) -> Delta:
    """Return some rows of a delta: by themselves where they can be had so, else as a share of the whole."""
    if not delta.needs_base or (own := delta.rows(rows)) is None:
        shares = tuple(Share(place.path, place.rows or (), place.into) for place in places)
        return SharedDelta(delta, rows, shares) if delta.needs_base else cut_rows(delta, rows)
    return own


def other_inputs(
    delta: Delta, place: Place, whole: tuple[int, ...], modules: Mapping[str, nn.Module]
) -> Delta | None:
    """Return a delta for a model's first layer that takes another number of channels, or None for any other.

    Where the layer takes more, they are left alone. Where the delta does, it is returned as it is: the layer is to be
    made wider. That is done for linear layers, as in Flux's control LoRAs.
    """
    if place.path not in INPUTS or place != Place(place.path):
        return None
    narrow = pad_channels(delta, whole)
    if narrow is not None or not isinstance(modules[place.path], nn.Linear) or len(delta.shape) < 2:
        return narrow
    wide = (whole[0], delta.shape[1])
    return delta.fitted(wide) if wide[1] > whole[1] else None


def stack(deltas: Sequence[tuple[Delta, Span]], shape: tuple[int, ...]) -> Delta:
    """Return deltas for rows of one weight of `shape` as one, their biases stacked too."""
    ordered = sorted(deltas, key=lambda item: item[1])
    weights = [(part, span) for delta, span in ordered if (part := delta.part("weight")) is not None]
    biases = [(part, span) for delta, span in ordered if (part := delta.part("bias")) is not None]
    on_weight = _stacked(weights, shape) if weights else None
    if biases:
        return PartsDelta(on_weight, _stacked(biases, shape[:1]))
    return _stacked(weights, shape)


def _stacked(deltas: Sequence[tuple[Delta, Span]], shape: tuple[int, ...]) -> Delta:
    parts, spans = zip(*deltas, strict=True)
    rows = [last - first for first, last in spans]
    whole = join_shared(parts, rows) if sum(rows) == shape[0] else None
    return whole or StackedDelta(tuple(parts), tuple(spans), shape)
