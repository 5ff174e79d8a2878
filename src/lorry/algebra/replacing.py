"""A parameter that is replaced and not added to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from lorry.algebra._shapes import Spans, needed, take_rows, trimmed
from lorry.algebra.base import Delta


@final
@dataclass(frozen=True, eq=False, slots=True)
class ReplaceDelta(Delta):
    """`value - W`, so that the parameter becomes `value`.

    The strength makes no difference, but for 0, which leaves the parameter alone. This is what Flux's control LoRAs
    do to the scales of norms, and what ComfyUI's `set_weight` means.

    Source: black-forest-labs/flux, the control LoRAs' own loading (the norms' scales are assigned).
    """

    value: Tensor
    """In the shape of the parameter."""

    family: ClassVar[str] = "replacement"
    needs_base: ClassVar[bool] = True

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def tensors(self) -> Mapping[str, Tensor]:
        return {"value": self.value}

    def weight(
        self, base: Tensor | None = None, dtype: torch.dtype = torch.float32, strength: float = 1.0
    ) -> Tensor:
        """The full delta, for which the base weight is needed.

        Raises:
            ValueError: there is no base, or it is of another shape (ShapeMismatchError).
        """
        fits = base is not None and self.fitted(tuple(base.shape)) is not None
        base = needed(base, "a replacement", fits).to(self.value.device, dtype)
        change = self.value.to(dtype).reshape(base.shape) - base
        return change if strength else change.zero_()

    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        if self.shape == shape:
            return self
        same = trimmed(self.shape) == trimmed(shape)
        return replace(self, value=self.value.reshape(shape)) if same else None

    def rows(self, spans: Spans) -> Self:
        return replace(self, value=take_rows(self.value, spans))
