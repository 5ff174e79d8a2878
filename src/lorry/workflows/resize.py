"""An adapter file cut down: to a rank, to a share of its energy, or to a size on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any, final

import torch

from lorry.adapters import Adapter, Entry
from lorry.adapters.reducing import ranks_by_energy, ranks_by_size, reduced
from lorry.binding import size_of
from lorry.errors import StateError
from lorry.workflows.accuracy import Errors, ErrorSum
from lorry.workflows.combine import ranks_of
from lorry.workflows.cutting import Spectra, spectra_of
from lorry.workflows.finite import read_finite
from lorry.workflows.matching import match
from lorry.workflows.progress import Progress, silent
from lorry.workflows.rules import Rule, check_ranks, check_rules, number_for
from lorry.workflows.storing import (
    check_destination,
    dtype_of,
    get_dtype,
    kept_metadata,
    size_of_file,
    size_of_source,
    write_adapter,
)


@final
@dataclass(frozen=True, slots=True)
class Budget:
    """What an adapter is cut down to: exactly one of the first three, and exceptions for some layers."""

    rank: int | None = None
    energy: float | None = None
    """The share of its squared norm that each layer keeps."""
    megabytes: float | None = None
    """The size of the file, in 10^6 bytes: the ranks are those that keep the most energy in it."""
    rules: tuple[Rule, ...] = ()
    """Ranks for the layers that a pattern names."""

    def __post_init__(self) -> None:
        given = [n for n in ("rank", "energy", "megabytes") if getattr(self, n) is not None]
        if len(given) > 1 or (not given and not self.rules):
            raise StateError(
                f"Expected one of a rank, an energy and a size, got {' and '.join(given) or 'none of them'}."
            )
        if self.rank is not None and self.rank < 1:
            raise StateError(f"A rank of {self.rank}: expected 1 or more.")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise StateError(f"An energy of {self.energy:g}: expected a share over 0 and up to 1.")
        if self.megabytes is not None and not 0 < self.megabytes < inf:
            raise StateError(f"A size of {self.megabytes:g} MB: expected a finite one over 0.")
        check_ranks(self.rules)


@final
@dataclass(frozen=True, slots=True)
class ResizeReport:
    """What an adapter was cut down to, and what that cost."""

    source: str
    targets: int
    cut: int
    """How many targets have a new rank."""
    ranks: Mapping[int, int]
    """{rank: how many targets}; full differences under their shorter side."""
    kept: float
    """The share of the squared norm that is left, of the layers that can be cut."""
    errors: Errors
    """Against the adapter before."""
    layers: Mapping[str, tuple[int, int]]
    """{target: (rank before, rank after)}, for the layers that can be cut."""
    size_before: int
    size_after: int
    path: str | None

    def as_dict(self) -> dict[str, Any]:
        """The report in types that JSON has."""
        return asdict(self)

    def __str__(self) -> str:
        listed = ", ".join(f"{rank} ({count})" for rank, count in self.ranks.items())
        before, after = size_of(self.size_before), size_of(self.size_after)
        return "\n".join(
            (
                f"{self.source}: {self.cut} of {self.targets} targets cut, {before} -> {after}",
                f"  rank {listed}",
                f"  {self.kept:.2%} of the energy kept; {self.errors}",
                f"  {self.path or 'nothing written'}",
            )
        )


def resize_file(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    budget: Budget,
    *,
    dtype: str | torch.dtype | None = None,
    dialect: str | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> ResizeReport:
    """Cut an adapter down, each layer by the best approximation of its rank.

    LoRA, LoHa, LoKr and full differences are cut and become LoRA; a DoRA keeps its magnitude around a smaller LoRA.
    What has no rank, or less than asked for, stays as it is.

    Args:
        source: a file, a folder or a Hub id.
        out: where to write; None works the report out and writes nothing.
        budget: what to cut to.
        dtype: to write in; the source's when None.
        dialect: to write in; the source's when None and lorry writes that, else kohya's.
        seed: of the sketch by which full differences are cut.
        progress: told of each layer.

    Raises:
        StateError: the file cannot be made that small, or a rule matches nothing.
        NotFiniteError: a source, or the result, holds a NaN or an infinity; nothing is written.
        FileError: `out` cannot be written, or is there already and is no adapter.
    """
    check_destination(out)
    adapter = read_finite(source)
    chosen = get_dtype(dtype) or dtype_of([adapter])
    spectra = spectra_of(adapter, chosen, dialect, progress)
    ranks = _ranks(adapter, spectra, budget)
    errors, entries = ErrorSum(), []
    for layer in progress(match([adapter]), "cutting"):
        entry = layer.present[0]
        delta = reduced(entry.delta, ranks[layer.name], seed=seed) if layer.name in ranks else entry.delta
        delta = delta.with_tensors({name: t.to(chosen) for name, t in delta.tensors().items()})
        errors.add(str(layer.target), delta, entry.delta)
        entries.append(Entry(layer.target, delta, ()))
    result = replace(
        adapter, entries=tuple(entries), ignored=(), metadata=_metadata(adapter, budget), source="the result"
    )
    path = None if out is None else write_adapter(result, out, dialect)
    layers = {
        str(spectra.layers[name].target): (len(spectra.values[name]), rank) for name, rank in ranks.items()
    }
    return ResizeReport(
        source=adapter.source,
        targets=len(entries),
        cut=sum(after < before for before, after in layers.values()),
        ranks=ranks_of(entries),
        kept=spectra.kept(ranks),
        errors=errors.total(),
        layers=layers,
        size_before=size_of_source(adapter),
        size_after=size_of_file(result, dialect) if path is None else path.stat().st_size,
        path=None if path is None else str(path),
    )


def _ranks(adapter: Adapter, spectra: Spectra, budget: Budget) -> dict[str, int]:
    """Return the rank of each layer that can be cut."""
    fixed = _fixed(spectra, budget.rules)
    if budget.rank is not None:
        ranks = spectra.at_rank(budget.rank)
    elif budget.energy is not None:
        ranks = ranks_by_energy(spectra.values, budget.energy)
    elif budget.megabytes is not None:
        ranks = _by_size(adapter, spectra, fixed, budget.megabytes)
    else:
        ranks = spectra.at_rank(max(map(len, spectra.values.values()), default=1))
    return ranks | fixed


def _fixed(spectra: Spectra, rules: Sequence[Rule]) -> dict[str, int]:
    check_rules(rules, list(spectra.layers.values()))
    found = {name: number_for(layer, rules) for name, layer in spectra.layers.items()}
    return {
        name: min(int(rank), len(spectra.values[name])) for name, rank in found.items() if rank is not None
    }


def _by_size(
    adapter: Adapter,
    spectra: Spectra,
    fixed: Mapping[str, int],
    megabytes: float,
) -> dict[str, int]:
    """Return the best ranks for a file of this size: header, alphas and what is not cut are counted first.

    Raises:
        StateError: rank 1 everywhere is more than that.
    """
    free = {name: values for name, values in spectra.values.items() if name not in fixed}
    least = spectra.size(dict.fromkeys(free, 1) | dict(fixed))
    if least > megabytes * 1e6:
        raise StateError(
            f"{adapter.source} cannot be cut to {megabytes:g} MB: with rank 1 everywhere it has {least / 1e6:.3g} MB."
        )
    return ranks_by_size(free, spectra.costs, int(megabytes * 1e6) - spectra.size(fixed))


def _metadata(adapter: Adapter, budget: Budget) -> dict[str, str]:
    cut: dict[str, Any] = {
        n: v for n in ("rank", "energy", "megabytes") if (v := getattr(budget, n)) is not None
    }
    if budget.rules:
        cut["rules"] = {rule.pattern: rule.numbers[0] for rule in budget.rules}
    return kept_metadata(adapter.metadata) | {"lorry.resized": json.dumps(cut)}
