"""Several adapter files into one: their exact weighted sum, or another mix, reduced to a rank on request."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch

from lorry.adapters import Adapter, Entry
from lorry.adapters.adding import added
from lorry.adapters.mixing import Method
from lorry.algebra import Delta
from lorry.binding import size_of
from lorry.errors import LorryError, StateError
from lorry.workflows.accuracy import Errors, ErrorSum
from lorry.workflows.finite import read_finite
from lorry.workflows.matching import Layer, match
from lorry.workflows.progress import Progress, silent
from lorry.workflows.recipes import Recipe, combined
from lorry.workflows.rules import Rule, check_rules, number_for
from lorry.workflows.storing import check_destination, common_metadata, dtype_of, get_dtype, write_adapter


@final
@dataclass(frozen=True, slots=True)
class CombineReport:
    """What was combined, and how far the result is from the exact weighted sum."""

    sources: tuple[tuple[str, float], ...]
    """(file, factor)."""
    method: str
    targets: int
    shared: int
    """How many targets more than one of the adapters changes."""
    ranks: Mapping[int, int]
    """{rank: how many targets}; full differences under their shorter side."""
    errors: Errors
    """Against the exact weighted sum."""
    path: str | None
    size: int | None
    """The bytes on disk; None where nothing was written."""

    def as_dict(self) -> dict[str, Any]:
        """The report in types that JSON has."""
        return asdict(self)

    def __str__(self) -> str:
        named = " + ".join(f"{factor:g} x {Path(source).stem}" for source, factor in self.sources)
        written = "nothing written" if self.path is None else f"{self.path}, {size_of(self.size or 0)}"
        listed = ", ".join(f"{rank} ({count})" for rank, count in sorted(self.ranks.items()))
        return "\n".join(
            (
                f"{self.method}: {named}",
                f"  {self.targets} targets, {self.shared} of them in more than one adapter; rank {listed}",
                f"  against the exact sum: {self.errors}",
                f"  {written}",
            )
        )


def combine_files(
    sources: Sequence[tuple[str | os.PathLike[str], float]],
    out: str | os.PathLike[str] | None,
    recipe: Recipe | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    dialect: str | None = None,
    progress: Progress = silent,
) -> CombineReport:
    """Combine adapter files into one.

    With the method `sum` and no reduction the result is the exact weighted sum, rounded once to `dtype`: ranks are
    joined, LoHa and LoKr by the products of their factors; where a layer has no factors, or more of them than a full
    matrix has numbers, it becomes a full difference. What only one adapter has keeps its family.

    Args:
        sources: files (or folders, or Hub ids), each with its factor.
        out: where to write; None works the report out and writes nothing.
        recipe: the method and its numbers; the exact sum when None.
        dtype: to write in; the widest of the sources' when None.
        dialect: to write in; the first source's when None and lorry writes that, else kohya's.
        progress: told of each layer.

    Returns:
        The report, with the error against the exact weighted sum.

    Raises:
        UnsupportedAdapterError: what depends on the base weight is in more than one adapter, or at another factor
            than 1; or an adapter brings tokens along, for which the dialect has no place.
        ShapeMismatchError: two adapters are for different base models.
        StateError: a rule matches nothing, one adapter alone is to be orthogonal, every factor is 0, or a dialect is
            said where nothing is written.
        NotFiniteError: a source, or the result, holds a NaN or an infinity; nothing is written.
        FileError: `out` cannot be written, or is there already and is no adapter.
    """
    check_destination(out, dialect)
    recipe = recipe or Recipe()
    if recipe.method is Method.ORTHOGONAL and len(sources) < 2:
        raise StateError("The method orthogonal takes adapters out of each other's way: give two or more.")
    adapters = [read_finite(source) for source, _ in sources]
    named = tuple((adapter.source, factor) for adapter, (_, factor) in zip(adapters, sources, strict=True))
    layers = match(adapters)
    check_rules(recipe.rules, layers, len(adapters))
    chosen = get_dtype(dtype) or dtype_of(adapters)
    errors, entries = ErrorSum(), []
    generator = torch.Generator().manual_seed(recipe.seed)
    for layer in progress(layers, "combining"):
        terms = _terms(layer, [factor for _, factor in named], recipe.rules)
        try:
            delta = combined(terms, recipe, chosen, generator)
            exact = added(terms, torch.float64)
        except LorryError as error:
            error.add_note(f"at {layer.target}, of {', '.join(source for source, _ in named)}")
            raise
        errors.add(str(layer.target), delta, exact)
        if delta is not None:
            entries.append(Entry(layer.target, delta, ()))
    if not entries:
        raise StateError("Every factor is 0: nothing is left to write.")
    result = Adapter(
        tuple(entries),
        adapters[0].dialect,
        metadata=_metadata(adapters, named, recipe),
        source="the combination",
        embeddings=tuple(one for adapter in adapters for one in adapter.embeddings),
        text_encoders={name: cls for adapter in adapters for name, cls in adapter.text_encoders.items()},
    )
    path = None if out is None else write_adapter(result, out, dialect)
    return CombineReport(
        sources=named,
        method=recipe.method.value,
        targets=len(entries),
        shared=sum(len(layer.present) > 1 for layer in layers),
        ranks=ranks_of(entries),
        errors=errors.total(),
        path=None if path is None else str(path),
        size=None if path is None else path.stat().st_size,
    )


def ranks_of(entries: Iterable[Entry]) -> dict[int, int]:
    """Return how many targets have each rank; a full difference counts by its shorter side."""
    ranks = (
        entry.delta.rank or min((entry.delta.shape[0], torch.Size(entry.delta.shape[1:]).numel()))
        for entry in entries
    )
    return dict(sorted(Counter(ranks).items()))


def _terms(layer: Layer, factors: Sequence[float], rules: Sequence[Rule]) -> list[tuple[Delta, float]]:
    terms = []
    for number, entry in enumerate(layer.entries):
        if entry is not None:
            rule = number_for(layer, rules, number)
            terms.append((entry.delta, factors[number] * (1.0 if rule is None else rule)))
    return terms


def _metadata(
    adapters: Sequence[Adapter], named: Sequence[tuple[str, float]], recipe: Recipe
) -> dict[str, str]:
    """What the sources agree on, and how this was made."""
    made = {
        "from": [{"file": Path(source).name, "factor": factor} for source, factor in named],
        "method": recipe.method.value,
        "rank": recipe.rank,
        "energy": recipe.energy,
        "rules": {rule.pattern: list(rule.numbers) for rule in recipe.rules},
    }
    if recipe.thins:
        made |= {"density": recipe.share, "seed": recipe.seed}
    return common_metadata(adapters) | {"lorry.combined": json.dumps({k: v for k, v in made.items() if v})}
