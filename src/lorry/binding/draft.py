"""The plan in the making: each entry of a file is placed, or written down as what it is instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, final

from torch import Tensor, nn

from lorry.adapters import Adapter, Entry, Ignored
from lorry.algebra import Delta, Span, same_numbers
from lorry.binding.embeddings import PlacedEmbeddings
from lorry.binding.index import ModuleIndex
from lorry.binding.places import Place, other_inputs, place_shapes, placed_delta, stack, whole_shape
from lorry.binding.report import ComponentReport, LoadReport, Mismatch
from lorry.binding.routes import Models
from lorry.binding.targets import weight_shape
from lorry.errors import UnknownTargetError, UnsupportedAdapterError

IDLE = "it adds nothing, and has no place in this model"


@final
@dataclass(frozen=True, eq=False, slots=True)
class _Placed:
    """An entry's delta for one module, or for the rows `into` of it."""

    entry: Entry
    into: Span | None


@final
@dataclass
class Draft:
    """A plan in the making."""

    indexes: Mapping[str, ModuleIndex]
    models: Models
    routes: Mapping[str, tuple[str, ...]]
    """The pipeline's components for each that the file names."""
    placed: dict[str, dict[str, list[_Placed]]] = field(default_factory=dict)
    applied: dict[str, list[Entry]] = field(default_factory=dict)
    ignored: list[Ignored] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    mismatched: list[Mismatch] = field(default_factory=list)

    def place(self, entry: Entry) -> None:
        """Put an entry where it belongs, in every component that its own is routed to; its keys count once."""
        components = self.routes[entry.target.component]
        if not components:
            self._leave(entry)
        for number, component in enumerate(components):
            self._place(component, entry if number == 0 else replace(entry, keys=()))

    def _place(self, component: str, entry: Entry) -> None:
        if self.models[component] is None:
            self.ignored.extend(Ignored(key, f"the pipeline has no {component} loaded") for key in entry.keys)
            return
        index = self.indexes[component]
        places = index.find(entry.target)
        if places is None:
            self._leave(entry)
            return
        parts = self._parts(entry, places, index)
        if parts is not None:
            self._put(component, entry, parts)

    def _parts(self, entry: Entry, places: Sequence[Place], index: ModuleIndex) -> dict[Place, Delta] | None:
        """Return an entry's delta by place, or None where it does not fit, which is written down."""
        whole = whole_shape(place_shapes(places, index.modules))
        reason = None
        parts: dict[Place, Delta | None] = {}
        try:
            parts = {
                place: None if whole is None else placed_delta(entry.delta, place, whole, places)
                for place in places
            }
            if len(places) == 1 and whole is not None and parts[places[0]] is None:
                parts[places[0]] = other_inputs(entry.delta, places[0], whole, index.modules)
        except UnsupportedAdapterError as error:
            reason = str(error)
        found = {
            place: _without_idle_bias(part, index.modules[place.path])
            for place, part in parts.items()
            if part is not None
        }
        if len(found) == len(places):
            return found
        path = " + ".join(place.path for place in places)
        self._leave(entry, Mismatch(entry.target, path, entry.keys, entry.delta.shape, whole, reason))
        return None

    def _leave(self, entry: Entry, mismatch: Mismatch | None = None) -> None:
        """Write down an entry that has no place, or does not fit the one that it has.

        Nothing is lost of one that adds nothing: ComfyUI's extraction writes zeros for each layer of a text encoder,
        those too that no adapter can be for.
        """
        if entry.delta.adds_nothing():
            self.ignored.extend(Ignored(key, IDLE) for key in entry.keys)
        elif mismatch is None:
            self.unknown.extend(entry.keys)
        else:
            self.mismatched.append(mismatch)

    def _put(self, component: str, entry: Entry, parts: Mapping[Place, Delta]) -> None:
        """Put the parts of an entry where they belong, but those that an earlier entry has put there."""
        placed = self.placed.setdefault(component, {})
        new, reason = [], ""
        for place, delta in parts.items():
            first = next((p for p in placed.get(place.path, ()) if _overlap(p.into, place.into)), None)
            if first is not None and (first.into != place.into or not equal(first.entry.delta, delta)):
                reason = self._idle_beside(component, place, entry, first.entry)
                first = first if reason else None
            elif first is not None:
                reason = f"the same tensors as {first.entry.keys[0]}"
            if first is None:
                part = entry if delta is entry.delta else replace(entry, delta=delta)
                new.append((place, _Placed(part, place.into)))
        for place, item in new:
            placed.setdefault(place.path, []).append(item)
        if new or not reason:
            self.applied.setdefault(component, []).append(entry)
        else:
            self.ignored.extend(Ignored(key, reason) for key in entry.keys)

    def _idle_beside(self, component: str, place: Place, entry: Entry, first: Entry) -> str:
        """Return why an entry is ignored beside an earlier one for the same rows; take that out if it is the idle one.

        Trainers that have fused an attention's layers write the layers which are then unused, too.

        Raises:
            UnknownTargetError: both change the weight, in other ways.
        """
        if entry.delta.adds_nothing():
            return f"it adds nothing, beside {first.keys[0]}"
        if not first.delta.adds_nothing():
            raise UnknownTargetError(
                f"`{component}.{place.path}` is named twice in the file, by {first.keys[0]} and by "
                f"{entry.keys[0]}, with different tensors. Remove one of the two spellings from the file."
            )
        self.ignored.extend(Ignored(key, f"it adds nothing, beside {entry.keys[0]}") for key in first.keys)
        self.applied[component] = [other for other in self.applied[component] if not _are_one(other, first)]
        for items in self.placed[component].values():
            items[:] = [item for item in items if not _are_one(item.entry, first)]
        return ""

    def deltas(self) -> dict[str, dict[str, Delta]]:
        """Return what every module gets, by component and path."""
        return {
            component: {path: self._delta(component, path, items) for path, items in placed.items() if items}
            for component, placed in self.placed.items()
        }

    def _delta(self, component: str, path: str, items: Sequence[_Placed]) -> Delta:
        parts = [(item.entry.delta, item.into) for item in items if item.into is not None]
        if not parts:
            return items[0].entry.delta
        return stack(parts, weight_shape(self.indexes[component].modules[path]) or ())

    def report(self, adapter: Adapter, tokens: PlacedEmbeddings) -> LoadReport:
        """Return the account of every key of the adapter's file."""
        return LoadReport(
            source=adapter.source,
            dialect=adapter.dialect,
            key_count=adapter.key_count,
            components=tuple(
                _component_report(name, len(self.placed[name]), entries)
                for name, entries in self.applied.items()
            ),
            ignored=(*adapter.ignored, *self.ignored, *tokens.ignored),
            unknown=(*adapter.unknown, *self.unknown, *tokens.unknown),
            mismatched=(*self.mismatched, *tokens.mismatched),
            embeddings=tuple(tokens.placed),
        )


def _without_idle_bias(delta: Delta, module: nn.Module) -> Delta:
    """Return a delta without its factor on a bias, for a module that has no bias to multiply."""
    weight, bias = delta.part("weight"), delta.part("bias")
    if weight is None or bias is None or not bias.multiplies:
        return delta
    return weight if module._parameters.get("bias") is None else delta


def _are_one(one: Entry, other: Entry) -> bool:
    return (one.keys, one.target) == (other.keys, other.target)


def _overlap(one: Span | None, other: Span | None) -> bool:
    return one is None or other is None or (one[0] < other[1] and other[0] < one[1])


def equal(one: Any, other: Any) -> bool:
    """Whether two deltas are of one family, with the same tensors and the same numbers."""
    if type(one) is not type(other) or one.rank_scale != other.rank_scale:
        return False
    return all(_same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.is_meta or other.is_meta:  # of a header alone
            return one.shape == other.shape
        return same_numbers(one, other)
    return equal(one, other) if isinstance(one, Delta) and isinstance(other, Delta) else one == other


def _component_report(name: str, targets: int, entries: list[Entry]) -> ComponentReport:
    return ComponentReport(
        component=name,
        targets=targets,
        keys=sum(len(entry.keys) for entry in entries),
        ranks=tuple(sorted({entry.delta.rank for entry in entries if entry.delta.rank is not None})),
        scales=tuple(sorted({entry.delta.rank_scale for entry in entries})),
        scale_sources=tuple(sorted({entry.scale_source for entry in entries})),
        families=tuple(sorted({entry.delta.family for entry in entries})),
        nbytes=sum(entry.delta.nbytes for entry in entries),
        adds_nothing=all(entry.delta.adds_nothing() for entry in entries),
        without_alpha=_without_alpha(entries),
    )


def _without_alpha(entries: list[Entry]) -> tuple[str, ...]:
    """Return a key of each entry that has no alpha where others have one."""
    if all(entry.scale_source != "alpha tensor" for entry in entries):
        return ()
    return tuple(
        entry.keys[0] for entry in entries if entry.scale_source == "rank" and entry.delta.rank is not None
    )
