"""A delta for the first input channels of a weight that has more of them, as an inpainting model has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from lorry.algebra._around import AroundDelta
from lorry.algebra._shapes import with_more_channels
from lorry.algebra.base import Delta, LowRank


def pad_channels(delta: Delta, shape: tuple[int, ...]) -> Delta | None:
    """Return a delta for a weight of `shape`, which has more input channels than it is for; those are left untouched.

    None where the shapes differ in another way.
    """
    own = delta.padded(shape)
    if own is not None or len(shape) < 2 or len(delta.shape) < 2:
        return own
    # Before they are fitted, some families count the columns of a convolution and some the channels.
    for channels in (delta.shape[1], delta.shape[1] // torch.Size(shape[2:]).numel()):
        if 0 < channels < shape[1]:
            inner = delta.fitted((shape[0], channels, *shape[2:]))
            if inner is not None:
                return PaddedDelta(inner, shape[1])
    return None


@final
@dataclass(frozen=True, eq=False, slots=True)
class PaddedDelta(AroundDelta):
    """`[inner.weight(W_1), 0]` for `W = [W_1, W_2]` along the input channels: any family but those that pad themselves.

    What a family does with the base (a DoRA's norms, rotations, reflections) it does with the channels that it was
    trained on, as if they were the layer: the magnitudes of a DoRA were learnt as norms over those alone, and norms
    over all channels would change what the adapter makes of its own.
    """

    inner: Delta
    """Fitted to the first channels."""
    channels: int
    """All that the weight has."""

    @property
    def family(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the inner delta."""
        return self.inner.family

    @property
    def needs_base(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the inner delta does."""
        return self.inner.needs_base

    @property
    def shape(self) -> tuple[int, ...]:
        rows, _, *kernel = self.inner.shape
        return (rows, self.channels, *kernel)

    def adds_nothing(self) -> bool:
        return self.inner.adds_nothing()

    def weight(
        self, base: Tensor | None = None, dtype: torch.dtype = torch.float32, strength: float = 1.0
    ) -> Tensor:
        first = None if base is None else base[:, : self.inner.shape[1]]
        return with_more_channels(self.inner.weight(first, dtype, strength), self.channels)

    def low_rank(self, dtype: torch.dtype = torch.float32) -> LowRank | None:
        return self._padded_pair(self.inner.low_rank(dtype))

    def exact_factors(self, dtype: torch.dtype = torch.float32) -> LowRank | None:
        return self._padded_pair(self.inner.exact_factors(dtype))

    def _padded_pair(self, pair: LowRank | None) -> LowRank | None:
        return None if pair is None else replace(pair, down=with_more_channels(pair.down, self.channels))

    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        return self if self.shape == shape else None

    def padded(self, shape: tuple[int, ...]) -> Self | None:
        rows, channels, *kernel = self.shape
        same = (rows, *kernel) == (shape[0], *shape[2:])
        return replace(self, channels=shape[1]) if same and channels < shape[1] else None

    def narrowed(self, channels: int) -> Delta | None:
        own = self.inner.shape[1]
        if channels == own:
            return self.inner
        return replace(self, channels=channels) if own < channels else None
