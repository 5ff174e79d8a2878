"""Deltas for blocks of rows of one weight: what lands where a model fuses layers that a file keeps apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from lorry.algebra._shapes import Span, trimmed
from lorry.algebra.base import Delta, LowRank


@final
@dataclass(frozen=True, eq=False, slots=True)
class StackedDelta(Delta):
    """`concatenate(parts)` along the rows, each part at its place and zeros between them.

    Each part keeps its own formula, rank and scale. Low-rank parts have a low-rank form together: `down` is theirs
    one below the other, `up` has a block for each.
    """

    parts: tuple[Delta, ...]
    spans: tuple[Span, ...]
    """The rows of each part, as (first, one past the last). No two overlap."""
    target_shape: tuple[int, ...]

    @property
    def family(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of the parts."""
        return "+".join(sorted({part.family for part in self.parts}))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.target_shape

    @property
    def rank(self) -> int | None:
        """That of the parts, or None where they differ."""
        ranks = {part.rank for part in self.parts}
        return ranks.pop() if len(ranks) == 1 else None

    @property
    def rank_scale(self) -> float:
        """That of the parts, or 1 where they differ."""
        scales = {part.rank_scale for part in self.parts}
        return scales.pop() if len(scales) == 1 else 1.0

    @property
    def needs_base(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether a part does."""
        return any(part.needs_base for part in self.parts)

    def tensors(self) -> Mapping[str, Tensor]:
        return {f"{i}.{name}": t for i, part in enumerate(self.parts) for name, t in part.tensors().items()}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        own: list[dict[str, Tensor]] = [{} for _ in self.parts]
        for key, tensor in tensors.items():
            number, _, name = key.partition(".")
            own[int(number)][name] = tensor
        parts = [part.with_tensors(found) for part, found in zip(self.parts, own, strict=True)]
        return replace(self, parts=tuple(parts))

    def completed(self, weight_of: Callable[[str], Tensor]) -> Self:
        parts = tuple(part.completed(weight_of) for part in self.parts)
        same = all(new is old for new, old in zip(parts, self.parts, strict=True))
        return self if same else replace(self, parts=parts)

    def weight(
        self, base: Tensor | None = None, dtype: torch.dtype = torch.float32, strength: float = 1.0
    ) -> Tensor:
        device = next(iter(self.tensors().values())).device
        whole = torch.zeros(self.shape, dtype=dtype, device=device)
        for part, (first, last) in zip(self.parts, self.spans, strict=True):
            rows = None if base is None else base[first:last]
            whole[first:last] = part.weight(rows, dtype, strength)
        return whole

    def low_rank(self, dtype: torch.dtype = torch.float32) -> LowRank | None:
        """The parts' factors together, or None where a part has none."""
        pairs = [pair for part in self.parts if (pair := part.low_rank(dtype)) is not None]
        if len(pairs) < len(self.parts):
            return None
        rank, scale = sum(pair.rank for pair in pairs), pairs[0].scale or 1.0
        up = torch.zeros(self.shape[0], rank, dtype=dtype, device=pairs[0].up.device)
        column = 0
        for pair, (first, last) in zip(pairs, self.spans, strict=True):
            up[first:last, column : column + pair.rank] = pair.up.to(dtype) * (pair.scale / scale)
            column += pair.rank
        return LowRank(torch.cat([pair.down.to(dtype) for pair in pairs]), up, scale)

    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        if self.shape == shape:
            return self
        if trimmed(self.shape) != trimmed(shape):
            return None
        parts = [part.fitted((part.shape[0], *shape[1:])) for part in self.parts]
        known = tuple(part for part in parts if part is not None)
        return replace(self, parts=known, target_shape=tuple(shape)) if len(known) == len(parts) else None
