"""The plan: which delta lands on which module, checked before anything is changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import nn

from lorry.adapters import Adapter, Embedding
from lorry.algebra import Delta
from lorry.binding.bases import made_for
from lorry.binding.draft import Draft
from lorry.binding.embeddings import place_embeddings
from lorry.binding.exchanged import with_meant_names
from lorry.binding.index import ModuleIndex
from lorry.binding.known import find_known, remember
from lorry.binding.report import LoadReport
from lorry.binding.routes import routes
from lorry.errors import NothingAppliedError, ShapeMismatchError, UnknownTargetError, did_you_mean, some

ALIKE = 0.85
"""How like a module's path a file's must be to be taken for a slip of the pen: most words are the same in all paths."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """What an adapter will do to the components of a pipeline, and the report that says so.

    Every delta has the shape of the weight it is for: applying a plan cannot find a surprise.
    """

    deltas: Mapping[str, Mapping[str, Delta]]
    """{component: {module path: delta}}, for components with at least one delta."""
    report: LoadReport
    embeddings: tuple[Embedding, ...] = ()
    """Tokens for text encoders, each with the pipeline's own name for the one it is for."""
    layers: Mapping[str, Mapping[str, nn.Module]] | None = None
    """The modules at these paths, by component, where all deltas of the adapter are there just as it has them: as in a
    plan like one that was made before. None of a new one."""

    def __str__(self) -> str:
        return str(self.report)


def bind(
    adapter: Adapter,
    models: Mapping[str, nn.Module | None],
    *,
    strict: bool = True,
    denoisers: Sequence[str] | None = None,
    tokenizers: Collection[str] = (),
) -> Plan:
    """Plan how `adapter` lands on the components of a pipeline. Nothing is changed.

    Args:
        adapter: what to apply. Its numbers are waited for.
        models: the pipeline's components by name; None for one that the pipeline has a place for and that is not
            loaded (keys for it are ignored, and the report says so).
        strict: refuse a file of which any tensor has no place or a wrong shape. When false, the rest is planned.
        denoisers: for a pipeline with two, which get the file's part for the denoiser. When None, the one that the file
            names; else the one whose noise its name or title says (`high_noise`, `low_noise`); else the first.
        tokenizers: the text encoders that have a tokenizer, which can learn the tokens that an adapter brings.

    Raises:
        NothingAppliedError: no tensor of the file has a place in the models.
        UnknownTargetError: strict, and the file has keys that nothing is known of.
        ShapeMismatchError: strict, and a delta has another shape than the weight it is for.
        UnknownTargetError: two tensors of the file claim one module and differ.
    """
    indexes = _indexes(models)
    found = routes(adapter, indexes, models, denoisers)
    known = find_known(adapter, indexes, found)
    if known is not None:
        deltas, report, layers = known
        return Plan(deltas, report, layers=layers)
    adapter.arrived()
    draft = _drafted(adapter, models, indexes, found)
    report = draft.report(adapter, place_embeddings(adapter.embeddings, models, tokenizers))
    if strict:
        _refuse_leftovers(report, draft, adapter)
    if not report.components:
        raise NothingAppliedError(
            f"Nothing of {adapter.source} can be applied to this pipeline. {made_for(adapter, models)}\n{report}"
        )
    deltas = draft.deltas()
    remember(adapter, indexes, found, deltas, report)
    return Plan(deltas, report, report.embeddings)


def report_on(
    adapter: Adapter, models: Mapping[str, nn.Module | None], tokenizers: Collection[str] = ()
) -> LoadReport:
    """Return what would become of every key of an adapter, whether or not it can be applied.

    Raises:
        UnknownTargetError: two tensors of the file claim one module and differ.
    """
    indexes = _indexes(models)
    draft = _drafted(adapter, models, indexes, routes(adapter, indexes, models))
    return draft.report(adapter, place_embeddings(adapter.embeddings, models, tokenizers))


def _indexes(models: Mapping[str, nn.Module | None]) -> dict[str, ModuleIndex]:
    return {name: ModuleIndex(model) for name, model in models.items() if model is not None}


def _drafted(
    adapter: Adapter,
    models: Mapping[str, nn.Module | None],
    indexes: Mapping[str, ModuleIndex],
    routed: Mapping[str, tuple[str, ...]],
) -> Draft:
    draft = Draft(indexes, models, routed)
    for entry in with_meant_names(adapter, indexes, routed).entries:
        draft.place(entry)
    return draft


def _refuse_leftovers(report: LoadReport, draft: Draft, adapter: Adapter) -> None:
    if not (report.mismatched or report.unknown):
        return
    told = report.mismatched and all(mismatch.reason for mismatch in report.mismatched)
    rest = "`strict=False` applies the rest." if report.applied else ""
    hint = f"{'' if told else made_for(adapter, draft.models)} {rest}".strip()
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
        error = UnknownTargetError if report.applied else NothingAppliedError
        raise error(
            f"{report.source} has {len(report.unknown)} of {report.key_count} keys with no place in this pipeline "
            f"({', '.join(draft.models)}): {some(report.unknown, 3)}.{_near(report, draft, adapter)} {hint}\n{report}"
        )


def _near(report: LoadReport, draft: Draft, adapter: Adapter) -> str:
    """Name the module that the first key without a place means, where the rest of its component has found places."""
    entry = next((entry for entry in adapter.entries if report.unknown[0] in entry.keys), None)
    if entry is None:  # it is a token's
        return ""
    served = {part.component for part in report.components}
    paths = [
        path.replace(".", "_") if entry.target.flat else path
        for component in draft.routes[entry.target.component]
        if component in served
        for path in draft.indexes[component].modules
    ]
    return did_you_mean(entry.target.path, paths, ALIKE)
