"""BoRA: another family's delta gives directions, and two magnitudes the lengths of rows and of columns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from lorry.algebra._around import AroundDelta
from lorry.algebra._rows import cut_rows
from lorry.algebra._shapes import UNKNOWN, Spans, are_all, columns, needed, no_meaning, take_rows
from lorry.algebra.base import Delta


@final
@dataclass(frozen=True, eq=False, slots=True)
class BoraDelta(AroundDelta):
    """`columns * R / norm(R) - W`, where `R = rows * V / norm(V)` and V is W plus the whole inner delta.

    The norm of V is of each row, that of R of each column. A row or column of zeros stays zero. It is linear in the
    strength: W' = W + strength * (W'_1 - W).

    Source: Wang et al., BoRA (arXiv:2412.06441), section 3, in the order that Stability-AI/stable-audio-3 at 636f906f
    has, `stable_audio_3/models/lora/model.py`.
    """

    inner: Delta
    """The delta that gives the direction."""
    row_magnitude: Tensor
    """(out)."""
    column_magnitude: Tensor
    """(in), or (in * kernel) for a convolution."""

    family: ClassVar[str] = "BoRA"
    needs_base: ClassVar[bool] = True
    own_tensors: ClassVar[tuple[str, ...]] = ("row_magnitude", "column_magnitude")

    def __post_init__(self) -> None:
        sizes = (self.inner.shape[0], columns(self.inner.shape))
        found = (self.row_magnitude.shape, self.column_magnitude.shape)
        fits = all(
            len(shape) == 1 and (UNKNOWN in self.inner.shape or shape[0] == size)
            for shape, size in zip(found, sizes, strict=True)
        )
        if not fits:
            magnitudes = {"rows": self.row_magnitude, "columns": self.column_magnitude}
            raise no_meaning(
                f"a BoRA over {self.inner.family}", magnitudes, f"expected vectors for {self.inner.shape}"
            )

    def weight(
        self, base: Tensor | None = None, dtype: torch.dtype = torch.float32, strength: float = 1.0
    ) -> Tensor:
        """The full delta, for which the base weight is needed.

        Raises:
            ValueError: there is no base, or it is of another shape (ShapeMismatchError).
        """
        fitted = None if base is None else self.fitted(tuple(base.shape))
        whole = needed(base, "a BoRA", fitted is not None).to(self.row_magnitude.device, dtype)
        inner = self.inner if fitted is None else fitted.inner
        change = inner.weight(whole, dtype)
        ratio = self._ratio((whole + change).flatten(1)).reshape(whole.shape)
        # W'_1 - W, with W'_1 = ratio * V, is change + (ratio - 1) * V.
        return torch.addcmul(change, (ratio - 1).to(dtype), whole + change).mul_(strength)

    def _ratio(self, direction: Tensor) -> Tensor:
        """What each number of V is multiplied by. What counts is how far it is from 1."""
        wide = torch.float32 if direction.device.type == "mps" else torch.float64  # MPS has no float64
        direction = direction.to(wide)
        by_row = _by_norm(self.row_magnitude.to(wide)[:, None], direction, 1)
        return by_row * _by_norm(self.column_magnitude.to(wide)[None], direction * by_row, 0)

    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        inner = self.inner.fitted(shape)
        sizes = (self.row_magnitude.numel(), self.column_magnitude.numel())
        if inner is None or sizes != (shape[0], columns(shape)):
            return None
        return self if inner is self.inner else replace(self, inner=inner)

    def rows(self, spans: Spans) -> Self | None:
        """The same for all rows in another order; None for some of them: the norm of a column is over all."""
        if not are_all(spans, self.shape[0]):
            return None
        own = self.inner.rows(spans) if self.inner.needs_base else cut_rows(self.inner, spans)
        return (
            None
            if own is None
            else replace(self, inner=own, row_magnitude=take_rows(self.row_magnitude, spans))
        )


def _by_norm(magnitude: Tensor, of: Tensor, axis: int) -> Tensor:
    norm = torch.linalg.vector_norm(of, dim=axis, keepdim=True)
    return torch.where(norm == 0, 1, magnitude / norm)
