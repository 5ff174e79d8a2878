"""Say what an adapter file holds, from its header alone: no weight of a safetensors file is read."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

from lorry.adapters import Adapter, Embedding, Ignored
from lorry.algebra import Delta, LoraDelta
from lorry.binding import size_of
from lorry.binding.kinds import kind_of
from lorry.dialects import read_adapter
from lorry.errors import FormatError, some
from lorry.files import TensorFile, find_weights, part_paths, read_weights
from lorry.workflows.training_facts import TrainingFacts, training_facts

METADATA_LENGTH = 72
"""How much of a metadata value is shown: trainers write whole configurations and tag lists there."""
METADATA_ALIKE = 3
"""How many keys that differ in a number are shown one by one: cloneofsimo's files have one for each layer."""


@final
@dataclass(frozen=True, slots=True)
class PartReport:
    """What a file holds for one component of a pipeline. Each mapping is {what: how many targets}."""

    component: str
    targets: int
    keys: int
    families: Mapping[str, int]
    kinds: Mapping[str, int]
    """Attention, feed-forward, convolution, …"""
    ranks: Mapping[int, int]
    alphas: Mapping[float, int]
    """Alpha, which is the rank where the file says nothing."""
    scales: Mapping[float, int]
    """The factors that the file puts on its deltas: alpha / rank."""
    scale_sources: Mapping[str, int]
    nbytes: int

    def __str__(self) -> str:
        sources = ", ".join(self.scale_sources)
        lines = (
            f"{self.component}: {self.targets} targets from {self.keys} keys, {size_of(self.nbytes)}",
            f"  {_counted(self.kinds)}",
            f"  {'+'.join(self.families)}, {_spread('rank', self.ranks)}, {_spread('alpha', self.alphas)}, "
            f"{_spread('scale', self.scales)} (from {sources})",
        )
        return "\n".join(lines)


@final
@dataclass(frozen=True, slots=True)
class FileReport:
    """What an adapter file holds."""

    source: str
    dialect: str | None
    """The naming convention of its keys; None where none claims the file."""
    parts: tuple[PartReport, ...]
    tensors: int
    dtypes: Mapping[str, int]
    """{dtype: how many tensors}."""
    nbytes: int
    """The bytes of its tensors."""
    size: int
    """The bytes on disk."""
    metadata: Mapping[str, str]
    ignored: tuple[Ignored, ...] = ()
    unknown: tuple[str, ...] = ()
    """Keys that the dialect cannot read; every key, where no dialect reads the file."""
    tokens: tuple[tuple[str, str, int], ...] = ()
    """The tokens that it brings along: (token, component, how many vectors)."""
    problem: FormatError | None = None
    """Why lorry cannot apply the file; None where it can."""

    @property
    def targets(self) -> int:
        """How many modules it changes, in all components."""
        return sum(part.targets for part in self.parts)

    @property
    def families(self) -> tuple[str, ...]:
        """The families of its deltas."""
        return tuple(dict.fromkeys(family for part in self.parts for family in part.families))

    @property
    def training(self) -> TrainingFacts:
        """What the metadata says of how it was trained."""
        return training_facts(self.metadata)

    def as_dict(self) -> dict[str, Any]:
        """The report in types that JSON has, metadata in full."""
        fields = {**asdict(self), "problem": None if self.problem is None else str(self.problem)}
        more = {"targets": self.targets, "families": list(self.families), "training": self.training.as_dict()}
        return fields | more

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """The report for people, line by line."""
        what = f"{self.dialect}, {'+'.join(self.families)}, " if self.dialect and self.families else ""
        yield f"{self.source}: {what}{self.targets} targets, {size_of(self.size)} on disk"
        yield f"  tensors: {self.tensors} ({_counted(self.dtypes)}), {size_of(self.nbytes)}"
        for part in self.parts:
            yield from (f"  {line}" for line in str(part).splitlines())
        for token, component, count in self.tokens:
            yield f"  {component}: the token {token!r} of {count} vectors"
        yield from (f"  {line}" for line in self._leftovers())
        if not self.training.is_empty:
            yield from (f"  {line}" for line in str(self.training).splitlines())
        if self.metadata:
            yield "  metadata:"
        shown = _gathered(self.metadata)
        width = min(32, max(map(len, shown), default=0))
        yield from (f"    {key:<{width}}  {value}" for key, value in shown.items())

    def _leftovers(self) -> Iterator[str]:
        reasons: dict[str, list[str]] = {}
        for item in self.ignored:
            reasons.setdefault(item.reason, []).append(item.key)
        for reason, keys in reasons.items():
            yield f"ignored: {len(keys)} keys, {reason}: {some(keys, 3)}"
        if self.unknown:
            yield f"not understood: {len(self.unknown)} keys: {some(self.unknown, 3)}"


def inspect_file(path: str | os.PathLike[str]) -> FileReport:
    """Say what an adapter file holds, from its header alone (a pickle has none, and is read whole).

    Args:
        path: of the file, or of a folder with one adapter file in it.

    Returns:
        The report. Where no dialect reads the file, or lorry cannot apply it, `problem` is the reason, and the report
        tells what any tensor file tells: keys, dtypes, sizes, metadata.

    Raises:
        FileError: the file cannot be had, or is not what its name says.
    """
    weights = find_weights(path)
    file = read_weights(weights, header_only=True)
    size = sum(path.stat().st_size for path in part_paths(weights))
    try:
        adapter = read_adapter(file)
    except FormatError as problem:
        return _report(file, size, None, problem)
    return _report(file, size, adapter, None)


def _report(file: TensorFile, size: int, adapter: Adapter | None, problem: FormatError | None) -> FileReport:
    tensors = file.tensors.values()
    return FileReport(
        source=file.source,
        dialect=None if adapter is None else adapter.dialect,
        parts=() if adapter is None else tuple(_parts(adapter)),
        tensors=len(tensors),
        dtypes=_count(str(tensor.dtype).removeprefix("torch.") for tensor in tensors),
        nbytes=sum(tensor.nbytes for tensor in tensors),
        size=size,
        metadata=dict(file.metadata),
        ignored=() if adapter is None else adapter.ignored,
        unknown=tuple(file.tensors) if adapter is None else adapter.unknown,
        tokens=() if adapter is None else tuple(map(_token, adapter.embeddings)),
        problem=problem,
    )


def _token(embedding: Embedding) -> tuple[str, str, int]:
    return embedding.token, embedding.component, embedding.vectors.shape[0]


def _parts(adapter: Adapter) -> Iterator[PartReport]:
    for component in adapter.components:
        entries = [entry for entry in adapter.entries if entry.target.component == component]
        yield PartReport(
            component=component,
            targets=len(entries),
            keys=sum(len(entry.keys) for entry in entries),
            families=_count(entry.delta.family for entry in entries),
            kinds=_count(kind_of(entry.target) for entry in entries),
            ranks=_rising(entry.delta.rank for entry in entries if entry.delta.rank is not None),
            alphas=_rising(alpha for entry in entries if (alpha := alpha_of(entry.delta)) is not None),
            scales=_rising(round(entry.delta.rank_scale, 6) for entry in entries),
            scale_sources=_count(entry.scale_source for entry in entries),
            nbytes=sum(entry.delta.nbytes for entry in entries),
        )


def alpha_of(delta: Delta) -> float | None:
    """Return the alpha that gives a delta its scale; None for a family without a rank."""
    if isinstance(delta, LoraDelta) and delta.alpha is not None:
        return delta.alpha
    return None if delta.rank is None else round(delta.rank_scale * delta.rank, 6)


def _count(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items(), key=lambda item: (-item[1], item[0])))


def _rising(numbers: Iterable[float]) -> dict[Any, int]:
    return dict(sorted(Counter(numbers).items()))


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def _spread(word: str, counts: Mapping[Any, int]) -> str:
    """`rank 8`, or `rank 4 (12), 8 (40)`: each number and how many targets have it."""
    if not counts:
        return f"no {word}"
    if len(counts) == 1:
        return f"{word} {next(iter(counts)):g}"
    listed = some([f"{number:g} ({count})" for number, count in counts.items()])
    return f"{word} {listed}"


def _gathered(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata by sorted key, values shortened; keys that differ in a number, with one value, as one line."""
    alike: dict[tuple[str, str], list[str]] = {}
    for key in sorted(metadata):
        alike.setdefault((re.sub(r"\d+", "*", key), metadata[key]), []).append(key)
    shown: dict[str, str] = {}
    for (pattern, value), keys in alike.items():
        if len(keys) > METADATA_ALIKE and pattern not in shown:
            shown[pattern] = f"{_shortened(value)} ({len(keys)} keys)"
        else:
            shown |= {key: _shortened(value) for key in keys}
    return shown


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= METADATA_LENGTH else f"{line[:METADATA_LENGTH]}… ({len(text)} characters)"
