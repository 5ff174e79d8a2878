"""What an adapter keeps at each size: the curve to choose from before cutting it down."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

import torch

from lorry.adapters.reducing import ranks_by_energy, ranks_by_size
from lorry.binding import size_of
from lorry.errors import StateError
from lorry.workflows.cutting import Spectra, spectra_of
from lorry.workflows.finite import read_finite
from lorry.workflows.progress import Progress, silent
from lorry.workflows.storing import dtype_of, get_dtype, size_of_source

SHARES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
WAYS = {
    "rank": ("one rank for every layer", "--rank {:g}"),
    "energy": ("one share of energy for every layer", "--energy {:g}"),
    "size": ("the ranks that keep the most energy", "--size {:g}"),
}
"""What each way of choosing ranks is called, and the option of `lorry resize` for it."""


@final
@dataclass(frozen=True, slots=True)
class Point:
    """One choice of ranks on the way from a small file to all of it."""

    way: str
    """`rank` (the same everywhere), `energy` (the same share everywhere) or `size` (the best for the bytes)."""
    setting: float
    """The rank, the share, or the size in 10^6 bytes."""
    megabytes: float
    """Of the whole file."""
    kept: float
    """The share of all layers' energy."""
    smallest_rank: int
    largest_rank: int


@final
@dataclass(frozen=True, slots=True)
class Curve:
    """What an adapter keeps at each size, for three ways of choosing the ranks."""

    source: str
    targets: int
    size: int
    """The bytes on disk today."""
    points: tuple[Point, ...]

    def as_dict(self) -> dict[str, Any]:
        """The curve in types that JSON has."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.targets} targets that can be cut, {size_of(self.size)} today"]
        for way, (title, option) in WAYS.items():
            lines.append(f"  {title}:")
            for point in (point for point in self.points if point.way == way):
                ranks = f"rank {point.smallest_rank} to {point.largest_rank}"
                size = f"{point.megabytes:>9.3f} MB"
                lines.append(
                    f"    {option.format(point.setting):<16} {size}  keeps {point.kept:>7.2%}  {ranks}"
                )
        return "\n".join(lines)


def preview(
    source: str | os.PathLike[str], *, dtype: str | torch.dtype | None = None, progress: Progress = silent
) -> Curve:
    """Return what an adapter would keep at each size; nothing is written.

    Args:
        source: a file, a folder or a Hub id.
        dtype: that would be written; the source's when None.
        progress: told of each layer.
    """
    adapter = read_finite(source)
    spectra = spectra_of(adapter, get_dtype(dtype) or dtype_of([adapter]), progress=progress)
    if not spectra.values:
        raise StateError(f"{adapter.source}: no layer of it has a rank that can be cut.")
    return Curve(adapter.source, len(spectra.values), size_of_source(adapter), tuple(trade_off(spectra)))


def trade_off(spectra: Spectra, points: int = 12) -> list[Point]:
    """Return what each way of cutting keeps at sizes from small to whole: the curve to choose a budget from."""
    largest = max((len(values) for values in spectra.values.values()), default=1)
    ranks = sorted({max(1, round(largest ** (n / (points - 1)))) for n in range(points)})
    found = [_point("rank", rank, spectra, spectra.at_rank(rank)) for rank in ranks]
    found += [_point("energy", share, spectra, ranks_by_energy(spectra.values, share)) for share in SHARES]
    for rank in ranks:
        size = spectra.size(spectra.at_rank(rank))
        chosen = ranks_by_size(spectra.values, spectra.costs, size - spectra.beside)
        found.append(_point("size", round(size / 1e6 + 5e-5, 4), spectra, chosen))
    return found


def _point(way: str, setting: float, spectra: Spectra, ranks: Mapping[str, int]) -> Point:
    megabytes = spectra.size(ranks) / 1e6
    return Point(way, setting, megabytes, spectra.kept(ranks), min(ranks.values()), max(ranks.values()))
