"""The plan: which delta lands on which module, checked before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from lorry.adapters import Adapter, Entry, Ignored
from lorry.algebra import Delta, Span
from lorry.binding.index import ModuleIndex
from lorry.binding.places import Place, placed_delta, stack
from lorry.binding.report import ComponentReport, LoadReport, Mismatch
from lorry.binding.targets import weight_shape
from lorry.errors import (
    NothingAppliedError,
    ShapeMismatchError,
    UnknownTargetError,
    UnsupportedAdapterError,
    did_you_mean,
    some,
)
from lorry.names import DENOISER, DENOISERS, TEXT_ENCODERS, Target

T5_ROOTS = ("encoder.block.", "encoder_block_")
"""How paths in a T5 begin, and no others'."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """What an adapter will do to the components of a pipeline, and the report that says so.

    Every delta has the shape of the weight it is for: applying a plan cannot find a surprise.
    """

    deltas: Mapping[str, Mapping[str, Delta]]
    """{component: {module path: delta}}, for components with at least one delta."""
    report: LoadReport

    def __str__(self) -> str:
        return str(self.report)


def bind(adapter: Adapter, models: Mapping[str, nn.Module | None], *, strict: bool = True) -> Plan:
    """Plan how `adapter` lands on the components of a pipeline. Nothing is changed.

    Args:
        adapter: what to apply.
        models: the pipeline's components by name; None for one that the pipeline has a place for and that is not
            loaded (keys for it are ignored, and the report says so).
        strict: refuse a file of which any tensor has no place or a wrong shape. When false, the rest is planned.

    Raises:
        NothingAppliedError: no tensor of the file has a place in the models.
        UnknownTargetError: strict, and the file has keys that nothing is known of.
        ShapeMismatchError: strict, and a delta has another shape than the weight it is for.
        UnknownTargetError: two tensors of the file claim one module and differ.
    """
    draft = _Draft(
        {name: ModuleIndex(model) for name, model in models.items() if model is not None}, dict(models)
    )
    draft.settle_text_encoders(adapter.entries)
    for entry in adapter.entries:
        draft.place(entry)
    report = draft.report(adapter)
    if strict:
        _refuse_leftovers(report, draft, adapter)
    if not report.applied:
        raise NothingAppliedError(f"Nothing of {adapter.source} can be applied to this pipeline.\n{report}")
    return Plan(draft.deltas(), report)


@final
@dataclass(frozen=True, eq=False, slots=True)
class _Placed:
    """An entry's delta for one module, or for the rows `into` of it."""

    entry: Entry
    into: Span | None


@final
@dataclass
class _Draft:
    """A plan in the making."""

    indexes: dict[str, ModuleIndex]
    models: dict[str, nn.Module | None]
    renamed: dict[str, str] = field(default_factory=dict)
    """What this pipeline calls a text encoder that the file counts otherwise."""
    placed: dict[str, dict[str, list[_Placed]]] = field(default_factory=dict)
    applied: dict[str, list[Entry]] = field(default_factory=dict)
    ignored: list[Ignored] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    mismatched: list[Mismatch] = field(default_factory=list)

    def component(self, name: str) -> str | None:
        """Return the pipeline's own name for a component of the file, or None where it has no such thing."""
        if name == DENOISER:
            return next((known for known in DENOISERS if known in self.models), None)
        name = self.renamed.get(name, name)
        return name if name in self.models else None

    def settle_text_encoders(self, entries: Iterable[Entry]) -> None:
        """Find the T5 of a pipeline, which files count otherwise.

        Flux's T5 is its second text encoder and some trainers' third, Stable Diffusion 3's the third and others'
        second. Where the encoder of that number has none of a T5's modules, another that has them is meant, or else one
        that is not loaded.
        """
        t5: dict[str, list[Target]] = {}
        for entry in entries:
            if entry.target.component in TEXT_ENCODERS and entry.target.path.startswith(T5_ROOTS):
                t5.setdefault(entry.target.component, []).append(entry.target)
        for name, targets in t5.items():
            if self._has_any(name, targets) or (name in self.models and self.models[name] is None):
                continue
            others = [other for other in TEXT_ENCODERS if other != name and other in self.models]
            found = next((other for other in others if self._has_any(other, targets)), None)
            meant = found or next((other for other in others if self.models[other] is None), None)
            if meant is not None:
                self.renamed[name] = meant

    def _has_any(self, component: str, targets: Iterable[Target]) -> bool:
        index = self.indexes.get(component)
        return index is not None and any(index.find(target) is not None for target in targets)

    def place(self, entry: Entry) -> None:
        component = self.component(entry.target.component)
        if component is None:
            self.unknown.extend(entry.keys)
            return
        if self.models[component] is None:
            self.ignored.extend(Ignored(key, f"the pipeline has no {component} loaded") for key in entry.keys)
            return
        index = self.indexes[component]
        places = index.find(entry.target)
        if places is None:
            self.unknown.extend(entry.keys)
            return
        parts = self._parts(entry, places, index)
        if parts is not None:
            self._put(component, entry, parts)

    def _parts(self, entry: Entry, places: Sequence[Place], index: ModuleIndex) -> dict[Place, Delta] | None:
        """Return an entry's delta by place, or None where it does not fit, which is written down."""
        shapes = {place: weight_shape(index.modules[place.path]) for place in places}
        whole = _whole_shape(shapes)
        path = " + ".join(place.path for place in places)
        parts: dict[Place, Delta] = {}
        reason = None
        for place, shape in shapes.items():
            try:
                part = None if whole is None or shape is None else placed_delta(entry.delta, place, whole)
            except UnsupportedAdapterError as error:
                part, reason = None, str(error)
            if part is None:
                shape = entry.delta.shape
                self.mismatched.append(Mismatch(entry.target, path, entry.keys, shape, whole, reason))
                return None
            parts[place] = _without_idle_bias(part, index.modules[place.path])
        return parts

    def _put(self, component: str, entry: Entry, parts: Mapping[Place, Delta]) -> None:
        """Put the parts of an entry where they belong, but those that an earlier entry has put there."""
        placed = self.placed.setdefault(component, {})
        new, same = [], None
        for place, delta in parts.items():
            first = next((p for p in placed.get(place.path, ()) if _overlap(p.into, place.into)), None)
            if first is None:
                new.append((place, _Placed(replace(entry, delta=delta), place.into)))
            elif first.into == place.into and _equal(first.entry.delta, delta):
                same = first.entry
            else:
                raise UnknownTargetError(
                    f"`{component}.{place.path}` is named twice in the file, by {first.entry.keys[0]} and by "
                    f"{entry.keys[0]}, with different tensors. Remove one of the two spellings from the file."
                )
        for place, item in new:
            placed.setdefault(place.path, []).append(item)
        if new or same is None:
            self.applied.setdefault(component, []).append(entry)
        else:
            self.ignored.extend(Ignored(key, f"the same tensors as {same.keys[0]}") for key in entry.keys)

    def deltas(self) -> dict[str, dict[str, Delta]]:
        """Return what every module gets, by component and path."""
        return {
            component: {path: self._delta(component, path, items) for path, items in placed.items()}
            for component, placed in self.placed.items()
        }

    def _delta(self, component: str, path: str, items: Sequence[_Placed]) -> Delta:
        parts = [(item.entry.delta, item.into) for item in items if item.into is not None]
        if not parts:
            return items[0].entry.delta
        return stack(parts, weight_shape(self.indexes[component].modules[path]) or ())

    def report(self, adapter: Adapter) -> LoadReport:
        return LoadReport(
            source=adapter.source,
            dialect=adapter.dialect,
            key_count=adapter.key_count,
            components=tuple(
                _component_report(name, len(self.placed[name]), entries)
                for name, entries in self.applied.items()
            ),
            ignored=(*adapter.ignored, *self.ignored),
            unknown=(*adapter.unknown, *self.unknown),
            mismatched=tuple(self.mismatched),
        )


def _without_idle_bias(delta: Delta, module: nn.Module) -> Delta:
    """Return a delta without its factor on a bias, for a module that has no bias to multiply."""
    weight, bias = delta.part("weight"), delta.part("bias")
    idle = (
        weight is not None and bias is not None and bias.multiplies and module._parameters.get("bias") is None
    )
    return weight if weight is not None and idle else delta


def _whole_shape(shapes: Mapping[Place, tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """Return the shape of the weight that a file means, all its rows together; None where a module has none."""
    rows = 0
    rest: tuple[int, ...] = ()
    for place, shape in shapes.items():
        if shape is None:
            return None
        rows += place.into[1] - place.into[0] if place.into else shape[0]
        rest = shape[1:]
    return (rows, *rest)


def _overlap(one: Span | None, other: Span | None) -> bool:
    return one is None or other is None or (one[0] < other[1] and other[0] < one[1])


def _equal(one: Any, other: Any) -> bool:
    """Whether two deltas are of one family, with the same tensors and the same numbers."""
    if type(one) is not type(other) or one.rank_scale != other.rank_scale:
        return False
    return all(_same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return _equal(one, other) if isinstance(one, Delta) and isinstance(other, Delta) else one == other


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
    )


def _refuse_leftovers(report: LoadReport, draft: _Draft, adapter: Adapter) -> None:
    hint = "Was the adapter made for another base model? `strict=False` applies the rest."
    if report.mismatched:
        raise ShapeMismatchError(
            f"{report.source} does not fit: {some(map(str, report.mismatched), 3)}. {hint}\n{report}"
        )
    if adapter.unknown:
        raise UnknownTargetError(
            f"{report.source} has {len(adapter.unknown)} of {report.key_count} keys that are not understood: "
            f"{some(adapter.unknown, 3)}. Each is one of a pair whose other half is missing, or a kind of tensor that "
            f"lorry does not know. `strict=False` applies the rest.\n{report}"
        )
    if report.unknown:
        first = report.unknown[0]
        near = did_you_mean(
            first.rpartition(".lora")[0] or first, [p for i in draft.indexes.values() for p in i.modules]
        )
        error = UnknownTargetError if report.applied else NothingAppliedError
        raise error(
            f"{report.source} has {len(report.unknown)} of {report.key_count} keys with no place in this pipeline "
            f"({', '.join(draft.models)}): {some(report.unknown, 3)}.{near} {hint}\n{report}"
        )
