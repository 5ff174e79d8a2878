"""What a load did, as a value that prints well."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from lorry.adapters import Embedding, Ignored
from lorry.errors import some
from lorry.names import Target


@final
@dataclass(frozen=True, slots=True)
class ComponentReport:
    """What one component of a pipeline gets."""

    component: str
    targets: int
    keys: int
    """0 for a second denoiser that gets what the first one got."""
    ranks: tuple[int, ...]
    """The different ranks, rising."""
    scales: tuple[float, ...]
    """The different factors (alpha / rank) that the file puts on its deltas, rising."""
    scale_sources: tuple[str, ...]
    families: tuple[str, ...]
    nbytes: int
    adds_nothing: bool = False
    """Whether the file's numbers say that all of this leaves the model as it is; not known from a header alone."""
    without_alpha: tuple[str, ...] = ()
    """A key of each layer whose alpha is missing where others have theirs: its scale is 1, which may not be meant."""

    def __str__(self) -> str:
        families = "+".join(self.families)
        sources = ", ".join(self.scale_sources)
        return (
            f"{self.component}: {self.targets} targets from {self.keys or 'the same'} keys, "
            f"{families} {_span('rank', self.ranks)}, "
            f"{_span('scale', self.scales)} (from {sources}), {size_of(self.nbytes)}"
            f"{', which adds nothing: it is all zeros' if self.adds_nothing else ''}{self._missing}"
        )

    @property
    def _missing(self) -> str:
        """Whose alpha is missing, as the end of a sentence."""
        if not self.without_alpha:
            return ""
        number = len(self.without_alpha)
        return f"; {number} without the alpha that others have, at scale 1: {some(self.without_alpha, 3)}"


@final
@dataclass(frozen=True, slots=True)
class Mismatch:
    """A delta that has another shape than the weight it is for."""

    target: Target
    path: str
    keys: tuple[str, ...]
    got: tuple[int, ...]
    expected: tuple[int, ...] | None
    """None where the module cannot carry a delta at all."""
    reason: str | None = None
    """What keeps it out, where that is not its shape."""

    def __str__(self) -> str:
        if self.reason is not None:
            return f"`{self.path}`: {self.reason}"
        if self.expected is None:
            return f"`{self.path}`: the delta is {self.got}, the module cannot carry one"
        return f"`{self.path}`: the delta is {self.got}, the weight is {self.expected}"


@final
@dataclass(frozen=True, slots=True)
class LoadReport:
    """Accounts for every key of a file: the counts of its parts sum to `key_count`."""

    source: str
    dialect: str
    key_count: int
    components: tuple[ComponentReport, ...]
    ignored: tuple[Ignored, ...] = ()
    unknown: tuple[str, ...] = ()
    """Keys that no dialect reads, or whose module the model does not have."""
    mismatched: tuple[Mismatch, ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    """Tokens that text encoders learn; one key each."""

    @property
    def applied(self) -> int:
        """How many keys were applied."""
        return sum(component.keys for component in self.components) + len(self.embeddings)

    @property
    def mismatched_keys(self) -> int:
        """How many keys belong to deltas of a wrong shape."""
        return sum(len(mismatch.keys) for mismatch in self.mismatched)

    @property
    def targets(self) -> int:
        """How many modules are changed, in all components."""
        return sum(component.targets for component in self.components)

    @property
    def adds_nothing(self) -> bool:
        """Whether the file's numbers say that it leaves every model as it is; not known from a header alone."""
        acts = self.embeddings or any(not component.adds_nothing for component in self.components)
        return bool(self.components) and not acts

    def __str__(self) -> str:
        counts = f"{len(self.ignored)} ignored, {len(self.unknown)} unknown, {self.mismatched_keys} of a wrong shape"
        applied = f"{self.applied} of {self.key_count} keys applied to {self.targets} targets"
        head = f"{self.source}: {self.dialect}, {applied}, {counts}"
        return "\n  ".join([head, *map(str, self.components), *self._tokens(), *self._leftovers()])

    def _tokens(self) -> Iterable[str]:
        for one in self.embeddings:
            yield f"{one.component}: the token {one.token!r} of {len(one.tokens)} vectors"

    def _leftovers(self) -> Iterable[str]:
        reasons: dict[str, list[str]] = {}
        for item in self.ignored:
            reasons.setdefault(item.reason, []).append(item.key)
        for reason, keys in reasons.items():
            yield f"ignored, {reason}: {some(keys, 3)}"
        if self.unknown:
            yield f"unknown: {some(self.unknown, 3)}"
        if self.mismatched:
            yield f"wrong shape: {some(map(str, self.mismatched), 3)}"


def size_of(nbytes: int) -> str:
    """Return a number of bytes for people: "517.5 kB", "46.12 MB"."""
    return f"{nbytes / 1e6:.2f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:.1f} kB"


def _span(word: str, numbers: tuple[float, ...]) -> str:
    if not numbers:
        return f"no {word}"
    low, high = numbers[0], numbers[-1]
    return f"{word} {low:.4g}" if low == high else f"{word} {low:.4g} to {high:.4g}"
