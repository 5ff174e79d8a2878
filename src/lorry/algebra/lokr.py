"""LoKr: the Kronecker product of two small matrices, each whole or as factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from lorry.algebra._shapes import (
    Spans,
    blocks_of,
    columns,
    count_rows,
    no_meaning,
    present,
    take_rows,
    trimmed,
)
from lorry.algebra.base import Delta, LowRank


@final
@dataclass(frozen=True, eq=False, slots=True)
class LokrDelta(Delta):
    """`scale * kron(w1, w2)`, both whole or `a @ b`; with a core `w2 = sum_pq t2[p,q,x,y] w2_a[p,o] w2_b[q,i]`.

    `scale` is `alpha / rank`, or 1 where `alpha` is None. Two whole matrices have no rank, and the alpha that a file
    gives them means nothing (LyCORIS writes its rank, ai-toolkit 9999999999): their scale is `full_scale`. It is linear
    in the strength.

    Source: Edalati et al., KronA (arXiv:2212.10650), section 3; Yeh et al., LyCORIS (arXiv:2309.14859), section 3.
    """

    w1: Tensor | None = None
    """(out1, in1), or None when it is of factors."""
    w2: Tensor | None = None
    """(out2, in2), for a convolution (out2, in2, kh, kw), or None when it is of factors."""
    w1_a: Tensor | None = None
    """(out1, rank)."""
    w1_b: Tensor | None = None
    """(rank, in1)."""
    w2_a: Tensor | None = None
    """(out2, rank); with the core (rank, out2)."""
    w2_b: Tensor | None = None
    """(rank, in2 * kh * kw); with the core (rank, in2)."""
    t2: Tensor | None = None
    """(rank, rank, kh, kw), or None."""
    alpha: float | None = None
    full_scale: float = 1.0
    """What two whole matrices are multiplied by: 1, but `lora_alpha / r` of the config for files of PEFT."""
    target_shape: tuple[int, ...] | None = None
    """The shape of the weight, which factors of `w2` tell only up to how their columns divide into in, kh and kw."""

    family: ClassVar[str] = "LoKr"
    vanishes_with: ClassVar[tuple[str, ...]] = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")

    def __post_init__(self) -> None:
        one, two = self._shapes
        problem = None
        if (self.w1 is None) == (self.w1_a is None) or (self.w1_a is None) != (self.w1_b is None):
            problem = "expected either `w1` or both of its factors"
        elif (self.w2 is None) == (self.w2_a is None) or (self.w2_a is None) != (self.w2_b is None):
            problem = "expected either `w2` or both of its factors"
        elif self.w2 is not None and self.t2 is not None:
            problem = "`w2` is whole and has a core"
        elif len(one) != 2 or len(two) < 2:
            problem = f"the parts of `{'w2' if len(one) == 2 else 'w1'}` do not join"
        elif self.rank == 0:
            problem = "expected a rank of at least 1"
        elif self.target_shape is not None and not self._fits(self.target_shape):
            problem = f"they do not make a weight of {self.target_shape}"
        if problem:
            raise no_meaning("a LoKr", self.tensors(), problem)

    @property
    def _shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return _shape(self.w1, self.w1_a, self.w1_b), _shape(self.w2, self.w2_a, self.w2_b, self.t2)

    @property
    def _own_shape(self) -> tuple[int, ...]:
        (out1, in1), (out2, in2, *kernel) = self._shapes
        return (out1 * out2, in1 * in2, *kernel)

    def _fits(self, shape: tuple[int, ...]) -> bool:
        if len(self._own_shape) == 2:
            return len(shape) > 1 and self._own_shape == (shape[0], columns(shape))
        return trimmed(self._own_shape) == trimmed(shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._own_shape if self.target_shape is None else self.target_shape

    @property
    def rank(self) -> int | None:
        """The rank of `w2`, or that of `w1` where `w2` is whole; None where both are."""
        factor = self.w1_b if self.w2_b is None else self.w2_b
        return None if factor is None else factor.shape[0]

    @property
    def rank_scale(self) -> float:
        if self.rank is None:
            return self.full_scale
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def tensors(self) -> Mapping[str, Tensor]:
        one = present(w1=self.w1, w1_a=self.w1_a, w1_b=self.w1_b)
        return one | present(w2=self.w2, w2_a=self.w2_a, w2_b=self.w2_b, t2=self.t2)

    def weight(
        self, base: Tensor | None = None, dtype: torch.dtype = torch.float32, strength: float = 1.0
    ) -> Tensor:
        one = _matrix(self.w1, self.w1_a, self.w1_b, None, dtype)
        two = _matrix(self.w2, self.w2_a, self.w2_b, self.t2, dtype)
        # The columns of `two` are (in2, kh, kw), those of the product (in1, in2, kh, kw): no kernel axis is crossed.
        return _product(one, two.flatten(1)).mul_(strength * self.rank_scale).reshape(self.shape)

    def exact_factors(self, dtype: torch.dtype = torch.float32) -> LowRank:
        """The Kronecker products of both matrices' factors: `(A B) x (C D) = (A x C)(B x D)`, of rank r1 * r2.

        A whole matrix counts as its product with the identity of its shorter side.
        """
        up1, down1 = _factors(self.w1, self.w1_a, self.w1_b, None, dtype)
        up2, down2 = _factors(self.w2, self.w2_a, self.w2_b, self.t2, dtype)
        down = _product(down1, down2.flatten(1))
        return LowRank(down.reshape(down.shape[0], *self.shape[1:]), _product(up1, up2), self.rank_scale)

    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        """The same delta for a weight of `shape`, which settles how its columns divide; None where it differs."""
        if self.shape == shape:
            return self
        known = self.target_shape is None or trimmed(self.target_shape) == trimmed(shape)
        return replace(self, target_shape=tuple(shape)) if known and self._fits(shape) else None

    def rows(self, spans: Spans) -> Self | None:
        """The same for some rows, by those of `w1`; None where a border lies within a block of `w2`."""
        blocks = blocks_of(spans, self._shapes[1][0])
        if blocks is None:
            return None
        shape = None if self.target_shape is None else (count_rows(spans), *self.target_shape[1:])
        cut = {
            name: take_rows(factor, blocks) for name, factor in present(w1=self.w1, w1_a=self.w1_a).items()
        }
        return replace(self, **cut, target_shape=shape)


def _product(one: Tensor, two: Tensor) -> Tensor:
    """The Kronecker product of two matrices; torch's own fails for some that lie transposed in memory."""
    rows, columns = one.shape[0] * two.shape[0], one.shape[1] * two.shape[1]
    return (one[:, None, :, None] * two[None, :, None, :]).reshape(rows, columns)


def _shape(
    whole: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None = None
) -> tuple[int, ...]:
    """Return the shape of one of the two matrices, or () where its parts do not join."""
    if whole is not None:
        return tuple(whole.shape)
    if a is None or b is None or a.ndim != 2 or b.ndim != 2:
        return ()
    if core is None:
        return (a.shape[0], b.shape[1]) if a.shape[1] == b.shape[0] else ()
    joins = core.ndim > 2 and core.shape[:2] == (a.shape[0], b.shape[0])
    return (a.shape[1], b.shape[1], *core.shape[2:]) if joins else ()


def _matrix(
    whole: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None, dtype: torch.dtype
) -> Tensor:
    if whole is not None:
        return whole.to(dtype)
    if a is None or b is None:
        raise AssertionError("the parts were checked when the delta was made")
    if core is None:
        return a.to(dtype) @ b.to(dtype)
    return torch.einsum("pq...,po,qi->oi...", core.to(dtype), a.to(dtype), b.to(dtype))


def _factors(
    whole: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return `up` (out, rank) and `down` (rank, in, …) of one of the two matrices."""
    if whole is None and a is not None and b is not None:
        if core is None:
            return a.to(dtype), b.to(dtype)
        return a.to(dtype).T.contiguous(), torch.einsum("pq...,qi->pi...", core.to(dtype), b.to(dtype))
    matrix = _matrix(whole, a, b, core, dtype)
    rows, columns = matrix.shape[0], matrix[0].numel()
    one = torch.eye(min(rows, columns), dtype=dtype, device=matrix.device)
    if rows <= columns:
        return one, matrix
    return matrix.flatten(1), one.reshape(columns, *matrix.shape[1:])
