"""What one file adds to a model, as a frozen value that knows neither keys' spelling nor models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self, final

from torch import Tensor

from lorry.algebra import Delta
from lorry.background import there
from lorry.names import Target

BlockNames = Literal["diffusers", "original"]
"""Whose names a model's modules have in a file."""
ScaleSource = Literal["alpha tensor", "metadata", "rank", "dialect"]
"""Where a delta's `rank_scale` comes from: the order of truth, the first that is there wins; or its dialect says it of
all files."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class Entry:
    """One delta and the target it is for."""

    target: Target
    delta: Delta
    keys: tuple[str, ...]
    """The keys of the file that it was made of: what a load report counts."""
    scale_source: ScaleSource = "rank"


@final
@dataclass(frozen=True, eq=False, slots=True)
class Embedding:
    """What a token means to a text encoder: a textual inversion that came with the adapter."""

    token: str
    component: str
    vectors: Tensor
    """(count, width). More than one take as many tokens: `token`, `token_1`, …"""
    key: str
    """Of the file."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """The names of its tokens, as diffusers' `load_textual_inversion` gives them."""
        return (self.token, *(f"{self.token}_{i}" for i in range(1, self.vectors.shape[0])))


@final
@dataclass(frozen=True, slots=True)
class Ignored:
    """A key of the file that is left out on purpose, and why."""

    key: str
    reason: str


@final
@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Adapter:
    """One adapter: its deltas by target, what its file holds besides, and where it came from."""

    entries: tuple[Entry, ...]
    dialect: str
    ignored: tuple[Ignored, ...] = ()
    unknown: tuple[str, ...] = ()
    """Keys that the dialect cannot read: an error when the adapter is bound strictly."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    source: str = "a state dict"
    embeddings: tuple[Embedding, ...] = ()
    block_names: BlockNames = "diffusers"
    """Whose names its targets have where a name means one module in diffusers and another in the original checkpoint,
    and no other name in it tells."""
    text_encoders: Mapping[str, str] = field(default_factory=dict)
    """By component, the class of a text encoder's model, where the file or its base says it and layers may not."""
    arrived: Callable[[], object] = there
    """Waits until the numbers of its tensors are there: a thread may still read the file."""

    @property
    def components(self) -> tuple[str, ...]:
        """The components that it has deltas for, in the order of the file."""
        return tuple(dict.fromkeys(entry.target.component for entry in self.entries))

    @property
    def key_count(self) -> int:
        """How many keys its file has, read or not."""
        layers = sum(len(entry.keys) for entry in self.entries)
        return layers + len(self.embeddings) + len(self.ignored) + len(self.unknown)

    @property
    def nbytes(self) -> int:
        """The bytes that its deltas hold."""
        return sum(entry.delta.nbytes for entry in self.entries)

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same adapter with `change` applied to every tensor."""

        def mapped(entry: Entry) -> Entry:
            tensors = {name: change(tensor) for name, tensor in entry.delta.tensors().items()}
            return replace(entry, delta=entry.delta.with_tensors(tensors))

        embeddings = tuple(replace(one, vectors=change(one.vectors)) for one in self.embeddings)
        return replace(self, entries=tuple(mapped(entry) for entry in self.entries), embeddings=embeddings)

    def only(self, *components: str) -> Self:
        """The part of it that is for these components, as if its file held nothing else."""
        return replace(
            self,
            entries=tuple(entry for entry in self.entries if entry.target.component in components),
            embeddings=tuple(one for one in self.embeddings if one.component in components),
        )
