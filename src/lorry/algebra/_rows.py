"""Some rows of a delta: what lands where a file fuses layers that the model keeps apart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from lorry.algebra._around import AroundDelta
from lorry.algebra._shapes import Spans, count_rows, take_rows, trimmed
from lorry.algebra.base import Delta, LowRank
from lorry.errors import UnsupportedAdapterError


def cut_rows(delta: Delta, spans: Spans) -> Delta:
    """Return the delta of the rows in `spans`, in that order, of a delta that is fitted to the whole weight.

    Raises:
        UnsupportedAdapterError: those rows depend on all rows of the base weight.
    """
    own = delta.rows(spans)
    if own is not None:
        return own
    if delta.needs_base:
        raise UnsupportedAdapterError(
            f"{delta.family} of {delta.shape} works on all rows of that weight together, which diffusers' model has in "
            "layers of their own: it cannot be cut. Loaded into a pipeline it works, with the weights of them all"
        )
    return RowsDelta(delta, spans)


@dataclass(frozen=True, eq=False, slots=True)
class PartDelta(AroundDelta):
    """Some rows of a delta that is fitted to a whole weight."""

    spans: Spans
    """The rows, as (first, one past the last), in the order that they are taken in."""

    @property
    def family(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the delta it is cut from."""
        return self.inner.family

    @property
    def shape(self) -> tuple[int, ...]:
        return (count_rows(self.spans), *self.inner.shape[1:])


@final
@dataclass(frozen=True, eq=False, slots=True)
class RowsDelta(PartDelta):
    """`inner.weight()[rows]`: for a family whose parts do not tell the rows apart (a LoKr cut within a block).

    `inner` is of a family that needs no base weight.
    """

    target_shape: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.target_shape or (count_rows(self.spans), *self.inner.shape[1:])

    def weight(
        self, base: Tensor | None = None, dtype: torch.dtype = torch.float32, strength: float = 1.0
    ) -> Tensor:
        whole = self.inner.weight(None, dtype, strength)
        return take_rows(whole, self.spans).reshape(self.shape).clone()

    def low_rank(self, dtype: torch.dtype = torch.float32) -> LowRank | None:
        pair = self.inner.low_rank(dtype)
        if pair is None:
            return None
        return LowRank(
            pair.down.reshape(pair.rank, *self.shape[1:]), take_rows(pair.up, self.spans), pair.scale
        )

    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        if self.shape == shape:
            return self
        return replace(self, target_shape=tuple(shape)) if trimmed(self.shape) == trimmed(shape) else None
