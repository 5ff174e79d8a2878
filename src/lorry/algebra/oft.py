"""OFT: the base weight turned by blocks, on its output side (Diag-OFT) or its input side (PEFT)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isqrt
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from lorry.algebra._rotations import at_most, cayley_step, neumann_step, rescaled, skew_of, turned
from lorry.algebra._shapes import (
    UNKNOWN,
    Spans,
    all_equal,
    blocks_of,
    columns,
    count_rows,
    needed,
    no_meaning,
    present,
    take_rows,
    trimmed,
)
from lorry.algebra.base import Delta


@final
@dataclass(frozen=True, eq=False, slots=True)
class OftDelta(Delta):
    """`rescale * (R^T W) - W`, or `W R^T - W` when it is `on_input`, with R of one rotation for each block of rows.

    R is the Cayley transform (I + Q)(I - Q)^-1 of skew-symmetric blocks Q, or a series for it. The columns that are
    turned `on_input` are all numbers of a row: in * kh * kw for a convolution.

    Strength interpolates the rotation, R_m = I + m (R - I), and the rescaling, 1 + m (rescale - 1), so that nothing is
    left of it at 0. LyCORIS applies `rescale` in full whatever the strength is; the two agree at 1.

    What writes which: LyCORIS and kohya (blocks, b, b) for the output side. PEFT packed blocks for the input side, by
    default with `neumann_terms` 5; without the series it turns the `opposite` way. OneTrainer and sd-scripts as PEFT by
    default, but `back_on_kernels`.

    Source: Qiu et al., Controlling Text-to-Image Diffusion by Orthogonal Finetuning (arXiv:2306.07280), section 3.
    """

    blocks: Tensor
    """(blocks, b, b), of which Q is the block minus its transpose; or packed, (blocks, b * (b - 1) / 2), the upper
    triangle of Q. One block alone is used for all `on_input`."""
    rescale: Tensor | None = None
    """(out), with any axes of 1 around, or None."""
    constraint: float | None = None
    """The largest norm of all of Q, per row of the weight, or None for no limit. A stored alpha of 0 is None in LyCORIS
    (no limit) and 0.0 in kohya (nothing turns)."""
    on_input: bool = False
    opposite: bool = False
    """Turn by -Q."""
    neumann_terms: int | None = None
    """The terms of the series in place of the Cayley transform, or None for the transform itself."""
    scaled: bool = False
    """Q is divided by 2 sqrt(b - 1), as OneTrainer's `scaled_oft` says."""
    block_norm: float | None = None
    """The largest norm of each block of Q, times the root of the number of stored blocks (`eps` of PEFT's `coft`)."""
    target_shape: tuple[int, ...] | None = None
    """The shape of the weight, of which the blocks tell one side."""
    back_on_kernels: bool = False
    """Turn a convolution by -Q. Fitting settles it, with the blocks the other way round."""

    family: ClassVar[str] = "OFT"
    needs_base: ClassVar[bool] = True

    def __post_init__(self) -> None:
        problem = None
        if self.blocks.ndim == 3 and self.blocks.shape[1] != self.blocks.shape[2]:
            problem = "expected square blocks"
        elif self.blocks.ndim not in (2, 3) or self.blocks.numel() == 0:
            problem = "expected blocks of 3 axes, or packed ones of 2"
        elif self.blocks.ndim == 2 and self.blocks.shape[1] * 2 != self._size * (self._size - 1):
            problem = f"{self.blocks.shape[1]} numbers are no upper triangle"
        elif self.rescale is not None and not self.on_input and self.rescale.numel() != self._turned:
            problem = f"expected {self._turned} numbers in `rescale`"
        elif self.target_shape is not None and not self._fits(self.target_shape):
            problem = f"they do not turn the {self._side} of a weight of {self.target_shape}"
        if problem:
            raise no_meaning("an OFT", self.tensors(), problem)

    @property
    def _side(self) -> str:
        return "columns" if self.on_input else "rows"

    @property
    def _size(self) -> int:
        """b: a triangle of n numbers belongs to a block of (1 + sqrt(1 + 8 n)) / 2."""
        return (
            self.blocks.shape[-1] if self.blocks.ndim == 3 else (1 + isqrt(1 + 8 * self.blocks.shape[1])) // 2
        )

    @property
    def _shared(self) -> bool:
        return self.on_input and self.blocks.shape[0] == 1

    @property
    def _turned(self) -> int:
        return self.blocks.shape[0] * self._size

    def _fits(self, shape: tuple[int, ...]) -> bool:
        if len(shape) < 2 or (self.rescale is not None and self.rescale.numel() != shape[0]):
            return False
        side = columns(shape) if self.on_input else shape[0]
        return side % self._size == 0 if self._shared else side == self._turned

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight; before the delta is fitted, -1 for what the blocks do not tell."""
        if self.target_shape is not None:
            return self.target_shape
        turned = UNKNOWN if self._shared else self._turned
        return (UNKNOWN, turned) if self.on_input else (turned, UNKNOWN)

    def tensors(self) -> Mapping[str, Tensor]:
        return present(blocks=self.blocks, rescale=self.rescale)

    def weight(
        self, base: Tensor | None = None, dtype: torch.dtype = torch.float32, strength: float = 1.0
    ) -> Tensor:
        """The full delta, for which the base weight is needed. It is computed in float32 at least.

        Raises:
            ValueError: there is no base, or it is of another shape (ShapeMismatchError).
        """
        fitted = None if base is None else self.fitted(tuple(base.shape))
        base = needed(base, "an OFT", fitted is not None)
        if self.back_on_kernels and fitted is not None:
            return fitted.weight(base, dtype, strength)
        wide = torch.promote_types(dtype, torch.float32)
        weight = base.to(self.blocks.device, wide).flatten(1)
        step = self._step(weight.shape[0], wide) * strength
        delta = turned(step, weight.mT).mT if self.on_input else turned(step.mT, weight)
        return rescaled(delta, weight, self.rescale, strength).to(dtype).reshape(base.shape)

    def _step(self, rows: int, dtype: torch.dtype) -> Tensor:
        """R - I, (blocks, b, b)."""
        skew = self._skew(dtype)
        skew = skew * self._limit(skew, rows)
        if self.scaled and self._size > 1:
            skew = skew / (2 * (self._size - 1) ** 0.5)
        skew = -skew if self.opposite else skew
        return cayley_step(skew) if self.neumann_terms is None else neumann_step(skew, self.neumann_terms)

    def _skew(self, dtype: torch.dtype) -> Tensor:
        blocks = self.blocks.to(dtype)
        return skew_of(blocks, self._size) if blocks.ndim == 2 else blocks - blocks.mT

    def _limit(self, skew: Tensor, rows: int) -> Tensor:
        """What keeps Q within its limits when it is multiplied by it, (blocks, 1, 1)."""
        factor = skew.new_ones(skew.shape[0], 1, 1)
        if self.constraint is not None:
            factor = factor * at_most(skew.norm(), self.constraint * rows)
        if self.block_norm is not None:
            norms = torch.linalg.matrix_norm(skew * factor, keepdim=True)
            factor = factor * at_most(norms, self.block_norm / skew.shape[0] ** 0.5)
        return factor

    def _without_limits(self) -> Self:
        """The same with the limits worked into the blocks: those of some rows do not tell how far all turn."""
        if (self.constraint, self.block_norm) == (None, None):
            return self
        wide = torch.promote_types(self.blocks.dtype, torch.float32)
        factor = self._limit(self._skew(wide), self.shape[0])
        blocks = self.blocks.to(wide) * factor.reshape(-1, *(1 for _ in self.blocks.shape[1:]))
        return replace(self, blocks=blocks, constraint=None, block_norm=None)

    def adds_nothing(self) -> bool:
        return self.rescale is None and all_equal(self.blocks, 0.0)

    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        """The same delta for a weight of `shape`, where the blocks make up its rows or columns."""
        if self.target_shape == shape:
            return self
        known = self.target_shape is None or trimmed(self.target_shape) == trimmed(shape)
        if not known or not self._fits(shape):
            return None
        blocks = -self.blocks if self.back_on_kernels and len(shape) > 2 else self.blocks
        return replace(self, blocks=blocks, target_shape=tuple(shape), back_on_kernels=False)

    def rows(self, spans: Spans) -> Self | None:
        """The same for some rows; None where a block turns rows of two layers."""
        blocks = None if self.on_input else blocks_of(spans, self._size)
        if blocks is None and not self.on_input:
            return None
        free = self._without_limits()
        shape = None if self.target_shape is None else (count_rows(spans), *self.target_shape[1:])
        turning = free.blocks if blocks is None else take_rows(free.blocks, blocks)
        rescale = None if self.rescale is None else take_rows(self.rescale.flatten(), spans)
        return replace(free, blocks=turning, rescale=rescale, target_shape=shape)
