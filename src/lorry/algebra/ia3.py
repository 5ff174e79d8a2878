"""(IA)^3: one factor for each output row or each input column of the base weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from lorry.algebra._shapes import (
    UNKNOWN,
    Spans,
    all_equal,
    count_rows,
    needed,
    no_meaning,
    take_rows,
    trimmed,
)
from lorry.algebra.base import Delta


@final
@dataclass(frozen=True, eq=False, slots=True)
class Ia3Delta(Delta):
    """`(vector - neutral) * W`, the vector along the rows of W, or along its columns when it is `on_input`.

    LyCORIS stores what is added to a factor of 1 (`neutral` 0), PEFT the factor (`neutral` 1). It is linear in the
    strength. A bias can be scaled too, as PEFT does on the output side: it has one axis, whose numbers are the rows.

    Source: Liu et al., Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning
    (arXiv:2205.05638), section 3.3.
    """

    vector: Tensor
    """(out) or (in), with any axes of 1 around."""
    on_input: bool = False
    neutral: float = 0.0
    """The value of the vector that changes nothing."""
    target_shape: tuple[int, ...] | None = None
    """The shape of the weight, of which the vector tells one axis."""

    family: ClassVar[str] = "(IA)^3"
    needs_base: ClassVar[bool] = True
    multiplies: ClassVar[bool] = True

    def __post_init__(self) -> None:
        problem = None
        if self.vector.numel() != max(self.vector.shape, default=0):
            problem = "expected one axis longer than 1"
        elif self.target_shape is not None and not self._fits(self.target_shape):
            problem = f"it does not lie along the {self._side} of a weight of {self.target_shape}"
        if problem:
            raise no_meaning("an (IA)^3", self.tensors(), problem)

    @property
    def _side(self) -> str:
        return "columns" if self.on_input else "rows"

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) > self.on_input and shape[self.on_input] == self.vector.numel()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight; before the delta is fitted, -1 for the axis that the vector does not tell."""
        if self.target_shape is not None:
            return self.target_shape
        count = self.vector.numel()
        return (UNKNOWN, count) if self.on_input else (count, UNKNOWN)

    def tensors(self) -> Mapping[str, Tensor]:
        return {"vector": self.vector}

    def weight(
        self, base: Tensor | None = None, dtype: torch.dtype = torch.float32, strength: float = 1.0
    ) -> Tensor:
        """The full delta, for which the base weight is needed.

        Raises:
            ValueError: there is no base, or it is of another shape (ShapeMismatchError).
        """
        fits = base is not None and self.fitted(tuple(base.shape)) is not None
        weight = needed(base, "an (IA)^3", fits).to(self.vector.device, dtype)
        factor = (self.vector.to(dtype).flatten() - self.neutral) * strength
        axes = [1] * weight.ndim
        axes[self.on_input] = -1
        return weight * factor.reshape(axes)

    def adds_nothing(self) -> bool:
        return all_equal(self.vector, self.neutral)

    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        """The same delta for a weight of `shape`, where the vector is as long as its rows or columns are many."""
        if self.target_shape == shape:
            return self
        known = self.target_shape is None or trimmed(self.target_shape) == trimmed(shape)
        return replace(self, target_shape=tuple(shape)) if known and self._fits(shape) else None

    def rows(self, spans: Spans) -> Self:
        shape = None if self.target_shape is None else (count_rows(spans), *self.target_shape[1:])
        vector = self.vector if self.on_input else take_rows(self.vector.flatten(), spans)
        return replace(self, vector=vector, target_shape=shape)
