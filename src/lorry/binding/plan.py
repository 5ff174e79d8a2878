"""The plan: which delta lands on which module, checked before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from lorry.adapters import Adapter, Entry, Ignored
from lorry.algebra import Delta
from lorry.binding.index import ModuleIndex
from lorry.binding.report import ComponentReport, LoadReport, Mismatch
from lorry.binding.targets import weight_shape
from lorry.errors import NothingAppliedError, ShapeMismatchError, UnknownTargetError, did_you_mean, some
from lorry.names import DENOISER, DENOISERS


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
    for entry in adapter.entries:
        draft.place(entry)
    report = draft.report(adapter)
    if strict:
        _refuse_leftovers(report, draft, adapter)
    if not report.applied:
        raise NothingAppliedError(f"Nothing of {adapter.source} can be applied to this pipeline.\n{report}")
    return Plan(
        {name: {p: e.delta for p, e in placed.items()} for name, placed in draft.placed.items()}, report
    )


@final
@dataclass
class _Draft:
    """A plan in the making."""

    indexes: dict[str, ModuleIndex]
    models: dict[str, nn.Module | None]
    placed: dict[str, dict[str, Entry]] = field(default_factory=dict)
    ignored: list[Ignored] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    mismatched: list[Mismatch] = field(default_factory=list)

    def component(self, name: str) -> str | None:
        """Return the pipeline's own name for a component of the file, or None where it has no such thing."""
        if name == DENOISER:
            return next((known for known in DENOISERS if known in self.models), None)
        return name if name in self.models else None

    def place(self, entry: Entry) -> None:
        component = self.component(entry.target.component)
        if component is None:
            self.unknown.extend(entry.keys)
            return
        if self.models[component] is None:
            self.ignored.extend(Ignored(key, f"the pipeline has no {component} loaded") for key in entry.keys)
            return
        index = self.indexes[component]
        path = index.find(entry.target)
        if path is None:
            self.unknown.extend(entry.keys)
            return
        shape = weight_shape(index.modules[path])
        delta = None if shape is None else entry.delta.fitted(shape)
        if delta is None:
            self.mismatched.append(Mismatch(entry.target, path, entry.keys, entry.delta.shape, shape))
            return
        self._put(component, path, replace(entry, delta=delta))

    def _put(self, component: str, path: str, entry: Entry) -> None:
        placed = self.placed.setdefault(component, {})
        first = placed.setdefault(path, entry)
        if first is entry:
            return
        if not _equal(first.delta, entry.delta):
            raise UnknownTargetError(
                f"`{component}.{path}` is named twice in the file, by {first.keys[0]} and by {entry.keys[0]}, with "
                "different tensors. Remove one of the two spellings from the file."
            )
        self.ignored.extend(Ignored(key, f"the same tensors as {first.keys[0]}") for key in entry.keys)

    def report(self, adapter: Adapter) -> LoadReport:
        return LoadReport(
            source=adapter.source,
            dialect=adapter.dialect,
            key_count=adapter.key_count,
            components=tuple(
                _component_report(name, list(placed.values())) for name, placed in self.placed.items()
            ),
            ignored=(*adapter.ignored, *self.ignored),
            unknown=(*adapter.unknown, *self.unknown),
            mismatched=tuple(self.mismatched),
        )


def _equal(one: Any, other: Any) -> bool:
    """Whether two deltas are of one family, with the same tensors and the same numbers."""
    if type(one) is not type(other) or one.rank_scale != other.rank_scale:
        return False
    return all(_same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return _equal(one, other) if isinstance(one, Delta) and isinstance(other, Delta) else one == other


def _component_report(name: str, entries: list[Entry]) -> ComponentReport:
    return ComponentReport(
        component=name,
        targets=len(entries),
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
