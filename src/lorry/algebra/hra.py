"""HRA: the base weight reflected on its input side, once for each column of a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from lorry.algebra._shapes import UNKNOWN, Spans, columns, count_rows, needed, no_meaning, trimmed
from lorry.algebra.base import Delta


@final
@dataclass(frozen=True, eq=False, slots=True)
class HraDelta(Delta):
    """`W @ (H_1 @ H_2 @ … - I)`, with H_i = I - 2 u_i u_i^T the reflection along the i-th column, made a unit vector.

    With `orthogonal` the columns are first made orthogonal to those before them (Gram-Schmidt). A column of a
    convolution's has in * kh * kw numbers. It is linear in the strength.

    Source: Yuan et al., Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection
    Adaptation (arXiv:2405.17484), section 3; peft 0.21.2, `tuners/hra/layer.py`, for the order of the reflections.
    """

    u: Tensor
    """(in * kh * kw, rank)."""
    orthogonal: bool = False
    """`apply_GS` of PEFT's config."""
    target_shape: tuple[int, ...] | None = None
    """The shape of the weight, of which `u` tells the columns."""

    family: ClassVar[str] = "HRA"
    needs_base: ClassVar[bool] = True

    def __post_init__(self) -> None:
        problem = None
        if self.u.ndim != 2 or self.u.numel() == 0:
            problem = "expected two axes"
        elif self.target_shape is not None and not self._fits(self.target_shape):
            problem = f"it does not reflect the columns of a weight of {self.target_shape}"
        if problem:
            raise no_meaning("an HRA", self.tensors(), problem)

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) > 1 and columns(shape) == self.u.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight; before the delta is fitted, -1 for its rows."""
        return self.target_shape or (UNKNOWN, self.u.shape[0])

    @property
    def rank(self) -> int:
        return self.u.shape[1]

    def tensors(self) -> Mapping[str, Tensor]:
        return {"u": self.u}

    def weight(
        self, base: Tensor | None = None, dtype: torch.dtype = torch.float32, strength: float = 1.0
    ) -> Tensor:
        """The full delta, for which the base weight is needed. It is computed in float32 at least.

        Raises:
            ValueError: there is no base, or it is of another shape (ShapeMismatchError).
        """
        fits = base is not None and self.fitted(tuple(base.shape)) is not None
        base = needed(base, "an HRA", fits)
        wide = torch.promote_types(dtype, torch.float32)
        weight = base.to(self.u.device, wide).flatten(1)
        delta = torch.zeros_like(weight)
        for unit in self._units(wide):
            # What a reflection adds is summed apart from the weight, so that small changes keep their digits.
            delta -= torch.outer((weight + delta) @ unit, 2 * unit)
        return delta.mul_(strength).to(dtype).reshape(base.shape)

    def _units(self, dtype: torch.dtype) -> list[Tensor]:
        """The unit vectors of the reflections, in the order in which the weight meets them."""
        units: list[Tensor] = []
        for column in self.u.to(dtype).unbind(1):
            for earlier in units if self.orthogonal else ():
                column = column - (earlier @ column) * earlier
            units.append(column / column.norm())
        return units

    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        """The same delta for a weight of `shape`, where `u` is as long as its rows."""
        if self.target_shape == shape:
            return self
        known = self.target_shape is None or trimmed(self.target_shape) == trimmed(shape)
        return replace(self, target_shape=tuple(shape)) if known and self._fits(shape) else None

    def rows(self, spans: Spans) -> Self:
        shape = None if self.target_shape is None else (count_rows(spans), *self.target_shape[1:])
        return replace(self, target_shape=shape)
