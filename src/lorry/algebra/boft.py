"""BOFT: the base weight turned by a butterfly of block rotations, each stage over other rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from lorry.algebra._rotations import at_most, cayley_step, rescaled, turned
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
class BoftDelta(Delta):
    """`rescale * (P_n' R_n P_n ... P_0' R_0 P_0 W) - W`, each R of rotations by blocks, each P an order of the rows.

    R is the Cayley transform (I + Q)(I - Q)^-1, with Q the block minus its transpose.

    With `on_input` it is PEFT's: the same product on W^T, over all in * kh * kw numbers of a row, with Q half of the
    transpose minus the block, and with other orders.

    Strength interpolates each stage, R_m = I + m (R - I), and the rescaling, 1 + m (rescale - 1), so that nothing is
    left of it at 0. LyCORIS applies `rescale` in full whatever the strength is; the two agree at 1.

    Source: Liu et al., Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization (arXiv:2311.06243),
    section 4; lycoris-lora 4.1.3 and peft 0.21.2 for the orders of the rows, which the paper leaves open.
    """

    blocks: Tensor
    """(stages, blocks, b, b)."""
    rescale: Tensor | None = None
    """(out), with any axes of 1 around, or None (`boft_s` of PEFT)."""
    constraint: float | None = None
    """The largest norm of all of Q, per row of the weight, or None for no limit (a stored alpha of 0)."""
    on_input: bool = False
    target_shape: tuple[int, ...] | None = None
    """The shape of the weight, of which the blocks tell one side."""

    family: ClassVar[str] = "BOFT"
    needs_base: ClassVar[bool] = True

    def __post_init__(self) -> None:
        problem = None
        if self.blocks.ndim != 4 or self.blocks.numel() == 0 or self.blocks.shape[2] != self.blocks.shape[3]:
            problem = "expected square blocks of 4 axes"
        elif not self._butterfly:
            problem = "that many stages do not divide the rows"
        elif self.rescale is not None and not self.on_input and self.rescale.numel() != self._turned:
            problem = f"expected {self._turned} numbers in `rescale`"
        elif self.target_shape is not None and not self._fits(self.target_shape):
            side = "columns" if self.on_input else "rows"
            problem = f"they do not turn the {side} of a weight of {self.target_shape}"
        if problem:
            raise no_meaning("a BOFT", self.tensors(), problem)

    @property
    def _butterfly(self) -> bool:
        stages, count, size, _ = self.blocks.shape
        whole = stages == 1 and self.on_input
        return whole or (size % 2 == 0 and count % 2 ** (stages - 1) == 0)

    @property
    def _turned(self) -> int:
        return self.blocks.shape[1] * self.blocks.shape[2]

    def _fits(self, shape: tuple[int, ...]) -> bool:
        if len(shape) < 2 or (self.rescale is not None and self.rescale.numel() != shape[0]):
            return False
        return self._turned == (columns(shape) if self.on_input else shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight; before the delta is fitted, -1 for the side that the blocks do not tell."""
        if self.target_shape is not None:
            return self.target_shape
        return (UNKNOWN, self._turned) if self.on_input else (self._turned, UNKNOWN)

    def tensors(self) -> Mapping[str, Tensor]:
        return present(blocks=self.blocks, rescale=self.rescale)

    def weight(
        self, base: Tensor | None = None, dtype: torch.dtype = torch.float32, strength: float = 1.0
    ) -> Tensor:
        """The full delta, for which the base weight is needed. It is computed in float32 at least.

        Raises:
            ValueError: there is no base, or it is of another shape (ShapeMismatchError).
        """
        fits = base is not None and self.fitted(tuple(base.shape)) is not None
        base = needed(base, "a BOFT", fits)
        wide = torch.promote_types(dtype, torch.float32)
        weight = base.to(self.blocks.device, wide).flatten(1)
        steps = cayley_step(self._skew(weight.shape[0], wide)) * strength
        delta = self._through(steps, weight.mT).mT if self.on_input else self._through(steps, weight)
        return rescaled(delta, weight, self.rescale, strength).to(dtype).reshape(base.shape)

    def _skew(self, rows: int, dtype: torch.dtype) -> Tensor:
        skew = self._free_skew(dtype)
        return skew if self.constraint is None else skew * at_most(skew.norm(), self.constraint * rows)

    def _free_skew(self, dtype: torch.dtype) -> Tensor:
        blocks = self.blocks.to(dtype)
        return (blocks.mT - blocks) / 2 if self.on_input else blocks - blocks.mT

    def _without_limit(self) -> Self:
        """The same with the limit worked into the blocks: those of some rows do not tell how far all turn."""
        if self.constraint is None:
            return self
        wide = torch.promote_types(self.blocks.dtype, torch.float32)
        factor = at_most(self._free_skew(wide).norm(), self.constraint * self.shape[0])
        return replace(self, blocks=self.blocks.to(wide) * factor, constraint=None)

    def _through(self, steps: Tensor, rows: Tensor) -> Tensor:
        """What all stages add to `rows`; it is summed apart from them, so that small turns keep their digits."""
        delta = torch.zeros_like(rows)
        for stage, step in enumerate(steps):
            order = self._order(stage).to(rows.device)
            delta[order] += turned(step, (rows + delta)[order])
        return delta

    def _order(self, stage: int) -> Tensor:
        """The rows in the order in which the blocks of a stage take them."""
        rows, half = torch.arange(self._turned, device="cpu"), self.blocks.shape[2] // 2
        if not self.on_input:  # those 2^stage half blocks apart become neighbours
            return rows.unflatten(0, (-1, 2, 2**stage * half)).mT.flatten()
        if self.blocks.shape[0] == 1:
            return rows
        # Within each group of 2^stage blocks the half blocks are sorted back from (even ones, odd ones).
        sorted_out = rows.unflatten(0, (-1, 2**stage, 2, half)).transpose(1, 2).flatten()
        return sorted_out.argsort()

    def adds_nothing(self) -> bool:
        return self.rescale is None and all_equal(self.blocks, 0.0)

    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        """The same delta for a weight of `shape`, where the blocks make up its rows or columns."""
        if self.target_shape == shape:
            return self
        known = self.target_shape is None or trimmed(self.target_shape) == trimmed(shape)
        return replace(self, target_shape=tuple(shape)) if known and self._fits(shape) else None

    def rows(self, spans: Spans) -> Self | None:
        """The same for some rows; None where a stage mixes rows of two layers.

        On the output side the last stage mixes the most: the rows of 2^(stages - 1) blocks with each other.
        """
        stages, _, size, _ = self.blocks.shape
        mixed = 2 ** (stages - 1)
        groups = None if self.on_input else blocks_of(spans, mixed * size)
        if groups is None and not self.on_input:
            return None
        free = self._without_limit()
        blocks = free.blocks
        if groups is not None:
            blocks = torch.cat([blocks[:, first * mixed : last * mixed] for first, last in groups], dim=1)
        shape = None if self.target_shape is None else (count_rows(spans), *self.target_shape[1:])
        rescale = None if self.rescale is None else take_rows(self.rescale.flatten(), spans)
        return replace(free, blocks=blocks, rescale=rescale, target_shape=shape)
