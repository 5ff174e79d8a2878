"""What an adapter's weights say: how strong each block is, and how much of its rank each layer uses."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor

from lorry.adapters.matrices import spectrum_of
from lorry.adapters.reducing import find_core, find_reducible
from lorry.adapters.svd import energies, rank_for
from lorry.workflows.blocks import block_of, column_of, in_order
from lorry.workflows.finite import read_finite
from lorry.workflows.inspect import alpha_of
from lorry.workflows.matching import match
from lorry.workflows.progress import Progress, silent

SHARES = (0.5, 0.9, 0.99)
"""Which shares of the energy the rank is told for."""


@final
@dataclass(frozen=True, slots=True)
class LayerMeasure:
    """One layer's delta, the file's own scale applied."""

    name: str
    block: str
    kind: str
    family: str
    shape: tuple[int, ...]
    rank: int | None
    """As the file has it; None where the family has none."""
    alpha: float | None
    norm: float
    """The Frobenius norm."""
    strength: float
    """The root mean square of the delta's entries: what layers of different sizes can be compared by."""
    spectrum: tuple[float, ...]
    """The singular values, falling; of a LoRA as many as its rank."""
    effective_rank: float
    """The exponential of the entropy of the energies (Roy and Vetterli, 2007, of squares): between 1 and the rank."""
    energy: tuple[float, ...]
    """The share of the squared norm that each rank keeps."""
    ranks: tuple[int, ...]
    """The least ranks that keep the shares `SHARES`."""


@final
@dataclass(frozen=True, slots=True)
class BlockMeasure:
    """The layers of a block together."""

    name: str
    layers: int
    norm: float
    strength: float
    """The root mean square of all entries."""
    share: float
    """Of the squared norm of the whole adapter."""
    effective_rank: float
    """The mean of the layers'."""
    rank_for_90: int
    """The rank that keeps 90 % in each of the layers."""


@final
@dataclass(frozen=True, slots=True)
class WeightsReport:
    """What an adapter's weights say."""

    source: str
    layers: tuple[LayerMeasure, ...]
    blocks: tuple[BlockMeasure, ...]
    left_out: int
    """How many targets have no matrix of their own: norms, biases, and what depends on the base weight."""

    def as_dict(self) -> dict[str, Any]:
        """The report in types that JSON has."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.layers:
            return "weights: no layer has a matrix of its own to measure"
        width = max(len(block.name) for block in self.blocks)
        lines = [
            "weights:",
            f"  {'block':<{width}}  layers     norm  strength  energy  effective rank  rank for 90 %",
        ]
        lines += [
            f"  {block.name:<{width}}  {block.layers:>6}  {block.norm:>7.3g}  {block.strength:>8.2e}  "
            f"{block.share:>6.1%}  {block.effective_rank:>14.2f}  {block.rank_for_90:>13}"
            for block in self.blocks
        ]
        norm = sum(layer.norm**2 for layer in self.layers) ** 0.5
        lines.append(f"  {'all':<{width}}  {len(self.layers):>6}  {norm:>7.3g}")
        for share, rank in zip(
            SHARES, zip(*(layer.ranks for layer in self.layers), strict=True), strict=True
        ):
            lines.append(
                f"  {share:.0%} of the energy of every layer: rank {max(rank)}; of half of them: {_median(rank)}"
            )
        if self.left_out:
            lines.append(
                f"  {self.left_out} targets have no matrix of their own (norms, biases, families that need the base)"
            )
        return "\n".join(lines)


def measure_file(path: str | os.PathLike[str], *, progress: Progress = silent) -> WeightsReport:
    """Measure an adapter's weights: all of them are read, and decomposed from their factors.

    Of a DoRA it is the delta inside.

    Args:
        path: a file, a folder or a Hub id.
        progress: told of each layer.
    """
    adapter = read_finite(path)
    layers, left_out = [], 0
    for layer in progress(match([adapter]), "measuring"):
        entry = layer.present[0]
        core, matrix = find_core(entry.delta), find_reducible(entry.delta)
        if core is None or matrix is None:
            left_out += 1
            continue
        spectrum = spectrum_of(matrix).double()
        norm = float(spectrum.norm())
        layers.append(
            LayerMeasure(
                name=str(entry.target),
                block=block_of(layer),
                kind=column_of(layer),
                family=core.family,
                shape=core.shape,
                rank=core.rank,
                alpha=alpha_of(core),
                norm=norm,
                strength=norm / torch.Size(core.shape).numel() ** 0.5,
                spectrum=tuple(spectrum.tolist()),
                effective_rank=effective_rank(spectrum),
                energy=tuple(energies(spectrum).tolist()),
                ranks=tuple(rank_for(spectrum, share) for share in SHARES),
            )
        )
    whole = sum(layer.norm**2 for layer in layers) or 1.0
    blocks = in_order(layer.block for layer in layers)
    found = (_block(name, [layer for layer in layers if layer.block == name], whole) for name in blocks)
    return WeightsReport(adapter.source, tuple(layers), tuple(found), left_out)


def effective_rank(spectrum: Tensor) -> float:
    """Return the exponential of the entropy of the shares of energy; 0 for a delta of zeros."""
    squares = spectrum.double().square()
    total = squares.sum()
    if total == 0:
        return 0.0
    shares = squares / total
    return float(torch.special.entr(shares).sum().exp())


def _block(name: str, layers: list[LayerMeasure], whole: float) -> BlockMeasure:
    square = sum(layer.norm**2 for layer in layers)
    entries = sum(torch.Size(layer.shape).numel() for layer in layers)
    return BlockMeasure(
        name=name,
        layers=len(layers),
        norm=square**0.5,
        strength=(square / entries) ** 0.5,
        share=square / whole,
        effective_rank=sum(layer.effective_rank for layer in layers) / len(layers),
        rank_for_90=max(layer.ranks[SHARES.index(0.9)] for layer in layers),
    )


def _median(numbers: Iterable[int]) -> int:
    ordered = sorted(numbers)
    return ordered[len(ordered) // 2]
