"""Some rows of a delta that works on the weights of several layers together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from lorry.algebra._rows import PartDelta
from lorry.algebra._shapes import Span, Spans, take_rows
from lorry.algebra.base import Delta
from lorry.errors import UnsupportedAdapterError


@final
@dataclass(frozen=True, slots=True)
class Share:
    """A layer that has some rows of the whole weight."""

    layer: str
    rows: Spans
    """Of the whole, in the order in which the layer has them."""
    into: Span | None = None
    """The rows of the layer, where it has others besides; None for all."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class SharedDelta(PartDelta):
    """`inner.weight(whole)[rows]`, where `whole` is the weight that the model keeps in several layers.

    For a family whose rows depend on all rows of the base: a DoRA of columns, whose norms run over them, or rotations
    that turn rows of one layer with rows of another. The other layers' weights come by `completed`.
    """

    inner: Delta
    """Fitted to the whole."""
    shares: tuple[Share, ...]
    """All layers that the whole is spread over."""
    whole: Tensor | None = None

    needs_base: ClassVar[bool] = True

    def completed(self, weight_of: Callable[[str], Tensor]) -> Self:
        first = weight_of(self.shares[0].layer)
        whole = first.new_empty(self.inner.shape)
        for share in self.shares:
            weight = weight_of(share.layer).to(first.device, first.dtype)
            rows = weight if share.into is None else weight[share.into[0] : share.into[1]]
            for span, part in zip(share.rows, rows.split([b - a for a, b in share.rows]), strict=True):
                whole[span[0] : span[1]] = part.reshape(-1, *whole.shape[1:])
        return replace(self, whole=whole)

    def weight(
        self, base: Tensor | None = None, dtype: torch.dtype = torch.float32, strength: float = 1.0
    ) -> Tensor:
        """The rows of the full delta, for which the whole weight is needed.

        Raises:
            UnsupportedAdapterError: it is not completed.
        """
        if self.whole is None:
            raise UnsupportedAdapterError(
                f"{self.family} of {self.inner.shape} works on the rows of several layers together "
                f"({', '.join(share.layer for share in self.shares)}), and here is the weight of one. Load it into a "
                "pipeline, where they are all there"
            )
        device = next(iter(self.tensors().values())).device
        full = self.inner.weight(self.whole.to(device), dtype, strength)
        return take_rows(full, self.spans).reshape(self.shape).clone()

    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        return self if self.shape == shape else None
