"""What can be cut from an adapter: the singular values of its layers, and what each rank costs on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from lorry.adapters import Adapter
from lorry.adapters.matrices import shape_of, spectrum_of
from lorry.adapters.reducing import find_core, find_reducible, with_core
from lorry.algebra import LoraDelta
from lorry.workflows.matching import Layer, match
from lorry.workflows.progress import Progress, silent
from lorry.workflows.storing import size_of_file

LONGER_NUMBERS = 24
"""What the header may grow by, in bytes, for a layer of a higher rank: shapes and places with more digits."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class Spectra:
    """The singular values of an adapter's layers, and what a rank of each costs."""

    layers: Mapping[str, Layer]
    """By common name: those that a rank can be cut from."""
    values: Mapping[str, Tensor]
    costs: Mapping[str, int]
    """The bytes that one rank takes in the dtype to write in."""
    beside: int = 0
    """The bytes of the file that are no factors that can be cut: header, alphas, norms, …"""

    @property
    def energy(self) -> float:
        """The squared norm of all layers together."""
        return sum(float(values.double().square().sum()) for values in self.values.values())

    def kept(self, ranks: Mapping[str, int]) -> float:
        """The share of all layers' energy that these ranks keep."""
        total = self.energy
        kept = sum(float(self.values[name][:rank].double().square().sum()) for name, rank in ranks.items())
        return 1.0 if total == 0 else kept / total

    def size(self, ranks: Mapping[str, int]) -> int:
        """The bytes of the whole file at these ranks."""
        return self.beside + sum(self.costs[name] * rank for name, rank in ranks.items())

    def at_rank(self, rank: int) -> dict[str, int]:
        """That rank for every layer that has as many."""
        return {name: min(rank, len(values)) for name, values in self.values.items()}


def spectra_of(
    adapter: Adapter, dtype: torch.dtype, dialect: str | None = None, progress: Progress = silent
) -> Spectra:
    """Return the singular values of every layer that a rank can be cut from.

    Args:
        adapter: of any families.
        dtype: that the factors would be written in, for the cost of a rank.
        dialect: that the file would be written in, for its header.
        progress: told of each layer.
    """
    layers, values, costs = {}, {}, {}
    for layer in progress(match([adapter]), "measuring"):
        matrix = find_reducible(layer.present[0].delta)
        if matrix is None:
            continue
        shape = shape_of(matrix)
        layers[layer.name], values[layer.name] = layer, spectrum_of(matrix)
        costs[layer.name] = (shape[0] + torch.Size(shape[1:]).numel()) * dtype.itemsize
    spectra = Spectra(layers, values, costs)
    return replace(spectra, beside=_beside(adapter, spectra, dtype, dialect))


def _beside(adapter: Adapter, spectra: Spectra, dtype: torch.dtype, dialect: str | None) -> int:
    """The bytes of a file at rank 1 less those of its factors, with room for the longer numbers of higher ranks."""
    entries = []
    for layer in match([adapter]):
        entry = layer.present[0]
        core = find_core(entry.delta)
        if core is not None:
            down = torch.empty(1, *core.shape[1:], dtype=dtype, device="meta")
            up = torch.empty(core.shape[0], 1, dtype=dtype, device="meta")
            entry = replace(entry, delta=with_core(entry.delta, LoraDelta(down, up, alpha=1.0)))
        entries.append(entry)
    outline = replace(adapter, entries=tuple(entries), ignored=(), unknown=())
    factors = spectra.size(dict.fromkeys(spectra.values, 1))
    return size_of_file(outline, dialect) - factors + LONGER_NUMBERS * len(entries)
