"""The full difference: nothing is factored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from lorry.algebra._shapes import Spans, take_rows, trimmed, with_fewer_channels, with_more_channels
from lorry.algebra.base import Delta


@final
@dataclass(frozen=True, eq=False, slots=True)
class FullDelta(Delta):
    """`scale * diff`, for a parameter of any shape: a weight, a bias, the scale or shift of a norm layer.

    `scale` is 1 but for the bias of PEFT's LoRA, which has that of the LoRA beside it. It is linear in the strength.

    Source: Yeh et al., LyCORIS (arXiv:2309.14859), section 3 (`full`, and `norm` for norm layers).
    """

    diff: Tensor
    """What to add, in the shape of the parameter."""
    scale: float = 1.0

    family: ClassVar[str] = "full"
    vanishes_with: ClassVar[tuple[str, ...]] = ("diff",)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.diff.shape)

    @property
    def rank_scale(self) -> float:
        return self.scale

    def tensors(self) -> Mapping[str, Tensor]:
        return {"diff": self.diff}

    def weight(
        self, base: Tensor | None = None, dtype: torch.dtype = torch.float32, strength: float = 1.0
    ) -> Tensor:
        return self.diff.to(dtype) * (strength * self.scale)

    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        if self.shape == shape:
            return self
        return replace(self, diff=self.diff.reshape(shape)) if trimmed(self.shape) == trimmed(shape) else None

    def rows(self, spans: Spans) -> Self:
        return replace(self, diff=take_rows(self.diff, spans))

    def padded(self, shape: tuple[int, ...]) -> Self | None:
        own = self.shape
        if own[:1] + own[2:] != shape[:1] + shape[2:] or len(own) < 2 or own[1] > shape[1]:
            return None
        return replace(self, diff=with_more_channels(self.diff, shape[1]))

    def narrowed(self, channels: int) -> Self | None:
        if self.diff.ndim < 2:
            return self
        diff = with_fewer_channels(self.diff, channels)
        return None if diff is None else replace(self, diff=diff)
