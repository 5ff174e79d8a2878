"""Which layers of a pipeline an adapter can be fused into, asked before anything is fused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from lorry.errors import StateError
from lorry.patching import LayersOfAKind, find_state, layers_by_kind
from lorry.pipelines.components import components_of, unwrapped
from lorry.pipelines.loading import check_loaded


@final
@dataclass(frozen=True, slots=True)
class FuseSupport:
    """What `fuse_lora` would do, by model and kind of layer. It is true where all of it can be fused."""

    rows: tuple[LayersOfAKind, ...]

    def __bool__(self) -> bool:
        return all(row.fusing == "exact" for row in self.rows)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        head = ("component", "layers", "their weights", "fusing", "rounding", "of the change", "arrives")
        table = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[column]) for line in table) for column in range(len(head))]
        for line in table:
            yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for fusing, reason in dict.fromkeys((row.fusing, row.reason) for row in self.rows if row.reason):
            yield f"{fusing}: the layer {reason}."


def _cells(row: LayersOfAKind) -> tuple[str, ...]:
    rounding = row.rounding if row.loss is None else row.loss.error
    shown = "" if rounding is None else f"{rounding:.1e}"
    lost = ("", "") if row.loss is None else (f"{row.loss.noise:.0%}", f"{row.loss.survives:.0%}")
    return (row.component, str(row.layers), row.kind, row.fusing, shown, *lost)


def fuse_support(model_or_pipeline: object, adapter: str | None = None) -> FuseSupport:
    """Say into which layers adapters can be fused, and what becomes of the others. Nothing is changed.

    Args:
        model_or_pipeline: a pipeline, or one of its models.
        adapter: the name of a loaded adapter, whose layers alone count; all layers that can carry one when None.

    Returns:
        A row for each model and kind of layer, which says whether `fuse_lora` is exact there, with the one rounding
        measured; or can be done with loss (`lossy=True`), and how much: how far the weight would be off, as a part of
        it and of the change, and what part of the change would arrive, of this adapter at the strength that is set; or
        is refused, and why. It prints as a table.

    Raises:
        StateError: there is no model that adapters go into.
        UnknownAdapterError: no adapter of that name is loaded.
    """
    model = unwrapped(model_or_pipeline)
    models = components_of(model_or_pipeline) if model is None else {type(model).__name__: model}
    if all(one is None for one in models.values()):
        raise StateError(
            f"{type(model_or_pipeline).__name__} has no model that adapters are for: expected a pipeline or a model."
        )
    if adapter is not None:
        check_loaded([adapter], models)
    rows: list[LayersOfAKind] = []
    for component, one in models.items():
        if one is not None:
            state = find_state(one)
            resident = None if state is None or adapter is None else state.adapters.get(adapter)
            only = None if adapter is None else () if resident is None else resident.everywhere.keys()
            deltas = None if state is None or adapter is None else state.contributions([adapter])
            rows += layers_by_kind(component, one, only, deltas)
    return FuseSupport(tuple(rows))
