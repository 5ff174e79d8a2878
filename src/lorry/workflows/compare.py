"""Two adapter files side by side: where and how much they overlap, and whether they will fight when mixed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

from lorry.adapters.matrices import matrix_of, needs_base
from lorry.adapters.overlaps import Overlap, overlap
from lorry.errors import StateError
from lorry.workflows.blocks import block_of, column_of, in_order
from lorry.workflows.finite import read_finite
from lorry.workflows.matching import Layer, match
from lorry.workflows.progress import Progress, silent

STRONG = 0.1
"""A cosine of this size or a shared energy of this share is worth a word. Random deltas have a cosine near 0."""
OVER_CHANCE = 3.0
"""Shared energy counts from this many times what random subspaces share."""

VERDICTS = {
    "fight": "they undo each other there: weaken one, or `lorry combine --method orthogonal`",
    "reinforce": "they do the same there: lower both strengths when mixed",
    "share": "they change the same features in different ways there: try it, at lower strengths",
    "apart": "they hardly touch the same features: mix freely",
}


@final
@dataclass(frozen=True, slots=True)
class Comparison:
    """The overlap of one layer, or of the layers of a block together."""

    name: str
    block: str
    kind: str
    cosine: float
    reads: float
    writes: float
    shared: float
    chance: float
    norms: tuple[float, float]
    gain: float
    """The norm of the sum over that of two deltas of these sizes at a right angle: over 1 they reinforce each other."""

    @property
    def verdict(self) -> str:
        """One word of `VERDICTS`."""
        if abs(self.cosine) >= STRONG:
            return "fight" if self.cosine < 0 else "reinforce"
        return "share" if self.shared >= max(STRONG, OVER_CHANCE * self.chance) else "apart"


@final
@dataclass(frozen=True, slots=True)
class CompareReport:
    """How two adapters overlap, by layer, by block and in all."""

    sources: tuple[str, str]
    layers: tuple[Comparison, ...]
    """The layers that both change."""
    blocks: tuple[Comparison, ...]
    whole: Comparison | None
    """None where no layer is in both."""
    angles: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]
    """{layer: principal angles of the row spaces and of the column spaces, in degrees}."""
    only: tuple[int, int]
    """How many layers only the one, and only the other changes."""
    left_out: int
    """How many layers of both depend on the base weight in one of them, and are not compared."""

    def as_dict(self) -> dict[str, Any]:
        """The report in types that JSON has."""

        def with_verdict(found: Comparison) -> dict[str, Any]:
            return {**asdict(found), "verdict": found.verdict}

        fields = asdict(self)
        fields["layers"] = [with_verdict(layer) for layer in self.layers]
        fields["blocks"] = [with_verdict(block) for block in self.blocks]
        return fields | {"whole": None if self.whole is None else with_verdict(self.whole)}

    def __str__(self) -> str:
        lines = [
            f"A = {self.sources[0]}",
            f"B = {self.sources[1]}",
            f"  {len(self.layers)} layers in both, {self.only[0]} only in A, {self.only[1]} only in B"
            + (f", {self.left_out} that depend on the base weight left out" if self.left_out else ""),
        ]
        if self.whole is None:
            return "\n".join([*lines, "  they change no layer in common: mix freely"])
        width = max(len(block.name) for block in self.blocks)
        lines.append(f"  {'block':<{width}}  cosine  reads  writes  shared (chance)   |A|     |B|    |A+B|")
        lines += [f"  {_row(found, width)}" for found in (*self.blocks, self.whole)]
        by_verdict: dict[str, list[str]] = {}
        for block in self.blocks:
            by_verdict.setdefault(block.verdict, []).append(block.name)
        lines += [
            f"  {word}: {', '.join(by_verdict[word])}: {VERDICTS[word]}"
            for word in VERDICTS
            if word in by_verdict
        ]
        return "\n".join(
            [*lines, f"  in all: {self.whole.verdict}: {VERDICTS[self.whole.verdict].replace(' there', '')}"]
        )


def compare_files(
    one: str | os.PathLike[str], two: str | os.PathLike[str], *, progress: Progress = silent
) -> CompareReport:
    """Say where and how much two adapters overlap. Both are taken at strength 1.

    Args:
        one, two: files, folders or Hub ids, of any dialects and families.
        progress: told of each layer.

    Raises:
        StateError: the deltas for a layer differ in shape, being for different base models.
    """
    adapters = [read_finite(path) for path in (one, two)]
    layers = match(adapters)
    both = [layer for layer in layers if len(layer.present) == 2 and _have_weights(layer)]
    found: list[tuple[Layer, Overlap]] = []
    for layer in progress(both, "comparing"):
        first, second = (entry.delta for entry in layer.present)
        if needs_base(first) or needs_base(second) or len(first.shape) < 2:
            continue
        fitted = second.fitted(first.shape)
        if fitted is None:
            raise StateError(
                f"{layer.target}: the deltas are for weights of {first.shape} and of {second.shape}: the adapters were "
                "made for different base models."
            )
        found.append((layer, overlap(matrix_of(first), matrix_of(fitted))))
    blocks = in_order(block_of(layer) for layer, _ in found)
    return CompareReport(
        sources=(adapters[0].source, adapters[1].source),
        layers=tuple(_together([pair], str(pair[0].target)) for pair in found),
        blocks=tuple(_together([p for p in found if block_of(p[0]) == block], block) for block in blocks),
        whole=_together(found, "all") if found else None,
        angles={str(layer.target): (o.angles_in, o.angles_out) for layer, o in found},
        only=(
            sum(layer.entries[1] is None for layer in layers),
            sum(layer.entries[0] is None for layer in layers),
        ),
        left_out=len(both) - len(found),
    )


def _have_weights(layer: Layer) -> bool:
    return all(entry.delta.part("weight") is not None for entry in layer.present)


def _together(found: Iterable[tuple[Layer, Overlap]], name: str) -> Comparison:
    """Return the overlap of several layers as if they were one: shares are weighted by energy."""
    pairs = list(found)
    squares = [sum(o.norms[n] ** 2 for _, o in pairs) for n in (0, 1)]
    whole = sum(squares) or 1.0
    inner = sum(o.inner for _, o in pairs)
    size = (squares[0] * squares[1]) ** 0.5

    def mean(field: str) -> float:
        return sum(getattr(o, field) * (o.norms[0] ** 2 + o.norms[1] ** 2) for _, o in pairs) / whole

    layer = pairs[0][0]
    return Comparison(
        name=name,
        block=block_of(layer),
        kind=column_of(layer),
        cosine=inner / size if size else 0.0,
        reads=mean("reads"),
        writes=mean("writes"),
        shared=mean("shared"),
        chance=mean("chance"),
        norms=(squares[0] ** 0.5, squares[1] ** 0.5),
        gain=max(0.0, 1 + 2 * inner / whole) ** 0.5,
    )


def _row(found: Comparison, width: int) -> str:
    one, two = found.norms
    return (
        f"{found.name:<{width}}  {found.cosine:+.3f}  {found.reads:>5.1%}  {found.writes:>6.1%}  {found.shared:>6.1%} "
        f"({found.chance:.1%})  {one:>7.3g} {two:>7.3g}  x{found.gain:.2f}"
    )
