"""LoHa: the elementwise product of two low-rank matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from lorry.algebra._shapes import Spans, columns, count_rows, no_meaning, present, take_rows, trimmed
from lorry.algebra.base import Delta, LowRank


@final
@dataclass(frozen=True, eq=False, slots=True)
class LohaDelta(Delta):
    """`scale * (w1_a @ w1_b) * (w2_a @ w2_b)`, or with Tucker cores both halves `sum_pq t[p,q,x,y] a[p,o] b[q,i]`.

    `scale` is `alpha / rank`, or 1 where `alpha` is None. It is linear in the strength.

    Source: Hyeon-Woo et al., FedPara (arXiv:2108.06098), propositions 1 and, for convolutions, 3; Yeh et al., LyCORIS
    (arXiv:2309.14859), section 3.
    """

    w1_a: Tensor
    """(out, rank); with cores (rank, out)."""
    w1_b: Tensor
    """(rank, in * kh * kw); with cores (rank, in)."""
    w2_a: Tensor
    w2_b: Tensor
    t1: Tensor | None = None
    """(rank, rank, kh, kw), or None. Both cores or none."""
    t2: Tensor | None = None
    alpha: float | None = None
    target_shape: tuple[int, ...] | None = None
    """The shape of the weight, which the tensors tell only up to how their columns divide into in, kh and kw."""

    family: ClassVar[str] = "LoHa"
    vanishes_with: ClassVar[tuple[str, ...]] = ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")

    def __post_init__(self) -> None:
        problem = None
        if any(factor.ndim != 2 for factor in (self.w1_a, self.w1_b, self.w2_a, self.w2_b)):
            problem = "expected factors of 2 axes"
        elif self.w1_b.shape[0] == 0 or self.w2_b.shape[0] == 0:
            problem = "expected a rank of at least 1"
        elif (self.t1 is None) != (self.t2 is None):
            problem = "one half has a core, the other has none"
        elif _half(self.w1_a, self.w1_b, self.t1) is None or _half(self.w2_a, self.w2_b, self.t2) is None:
            problem = "the factors of a half differ in rank"
        elif _half(self.w1_a, self.w1_b, self.t1) != _half(self.w2_a, self.w2_b, self.t2):
            problem = "the halves differ in shape"
        elif self.target_shape is not None and not self._fits(self.target_shape):
            problem = f"they do not make a weight of {self.target_shape}"
        if problem:
            raise no_meaning("a LoHa", self.tensors(), problem)

    @property
    def _own_shape(self) -> tuple[int, ...]:
        shape = _half(self.w1_a, self.w1_b, self.t1)
        return () if shape is None else shape

    def _fits(self, shape: tuple[int, ...]) -> bool:
        if self.t1 is not None:
            return trimmed(self._own_shape) == trimmed(shape)
        return len(shape) > 1 and self._own_shape == (shape[0], columns(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return self._own_shape if self.target_shape is None else self.target_shape

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    @property
    def rank_scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def tensors(self) -> Mapping[str, Tensor]:
        return present(w1_a=self.w1_a, w1_b=self.w1_b, w2_a=self.w2_a, w2_b=self.w2_b, t1=self.t1, t2=self.t2)

    def weight(
        self, base: Tensor | None = None, dtype: torch.dtype = torch.float32, strength: float = 1.0
    ) -> Tensor:
        one = _product(self.w1_a.to(dtype), self.w1_b.to(dtype), self.t1)
        two = _product(self.w2_a.to(dtype), self.w2_b.to(dtype), self.t2)
        return one.mul_(two).mul_(strength * self.rank_scale).reshape(self.shape)

    def low_rank(self, dtype: torch.dtype = torch.float32) -> LowRank | None:
        """The row-wise and column-wise products of the factors, where that is a low rank; None with cores.

        The rank is the product of the halves' ranks, so that it is of use only for small ones.
        """
        rank = self.w1_b.shape[0] * self.w2_b.shape[0]
        return None if self.t1 is not None or 4 * rank > min(self._own_shape) else self.exact_factors(dtype)

    def exact_factors(self, dtype: torch.dtype = torch.float32) -> LowRank:
        """The Khatri-Rao products of the halves' factors: `(A B) * (C D) = (A • C)(B • D)`, of rank r1 * r2."""
        up1, down1 = _factors(self.w1_a.to(dtype), self.w1_b.to(dtype), self.t1)
        up2, down2 = _factors(self.w2_a.to(dtype), self.w2_b.to(dtype), self.t2)
        up = (up1[:, :, None] * up2[:, None]).flatten(1)
        down = (down1[:, None] * down2[None]).flatten(0, 1)
        return LowRank(down.reshape(down.shape[0], *self.shape[1:]), up, self.rank_scale)

    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        """The same delta for a weight of `shape`, which settles how its columns divide; None where it differs."""
        if self.shape == shape:
            return self
        known = self.target_shape is None or trimmed(self.target_shape) == trimmed(shape)
        return replace(self, target_shape=tuple(shape)) if known and self._fits(shape) else None

    def rows(self, spans: Spans) -> Self:
        def cut(factor: Tensor) -> Tensor:
            return take_rows(factor, spans) if self.t1 is None else take_rows(factor.mT, spans).mT

        shape = None if self.target_shape is None else (count_rows(spans), *self.target_shape[1:])
        return replace(self, w1_a=cut(self.w1_a), w2_a=cut(self.w2_a), target_shape=shape)


def _half(a: Tensor, b: Tensor, core: Tensor | None) -> tuple[int, ...] | None:
    """Return the shape of one half, or None where its parts do not join."""
    if core is None:
        return (a.shape[0], b.shape[1]) if a.shape[1] == b.shape[0] else None
    joins = core.ndim > 2 and core.shape[:2] == (a.shape[0], b.shape[0])
    return (a.shape[1], b.shape[1], *core.shape[2:]) if joins else None


def _product(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    if core is None:
        return a @ b
    return torch.einsum("pq...,po,qi->oi...", core.to(a.dtype), a, b)


def _factors(a: Tensor, b: Tensor, core: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return `up` (out, rank) and `down` (rank, columns) of one half; a core is multiplied into `down`."""
    if core is None:
        return a, b
    return a.T, torch.einsum("pq...,qi->pi...", core.to(a.dtype), b).flatten(1)
