"""VeRA: low-rank factors that all layers share, and two vectors of each layer's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from lorry.algebra._shapes import UNKNOWN, columns, no_meaning, trimmed
from lorry.algebra.base import Delta, LowRank


@final
@dataclass(frozen=True, eq=False, slots=True)
class VeraDelta(Delta):
    """`diag(b) @ B @ diag(d) @ A`, with A the first columns of one shared matrix and B the first rows of another.

    It is linear in the strength.

    Source: Kopiczko et al., VeRA (arXiv:2310.11454), section 3.1; peft 0.21.2, `tuners/vera/layer.py`, for layers of
    unlike sizes.
    """

    lambda_b: Tensor
    """(out)."""
    lambda_d: Tensor
    """(rank)."""
    shared_a: Tensor
    """(rank, at least in)."""
    shared_b: Tensor
    """(at least out, rank)."""
    target_shape: tuple[int, ...] | None = None
    """The shape of the weight, of which the tensors tell the rows."""

    family: ClassVar[str] = "VeRA"
    vanishes_with: ClassVar[tuple[str, ...]] = ("lambda_b", "lambda_d")

    def __post_init__(self) -> None:
        problem = None
        if self.lambda_b.ndim != 1 or self.lambda_d.ndim != 1 or self.rank == 0:
            problem = "expected vectors of one axis"
        elif self.shared_a.ndim != 2 or self.shared_b.ndim != 2:
            problem = "expected shared matrices of two axes"
        elif not self.rank == self.shared_a.shape[0] == self.shared_b.shape[1]:
            problem = "the ranks differ"
        elif self.shared_b.shape[0] < self.lambda_b.shape[0]:
            problem = "the shared `B` has too few rows"
        elif self.target_shape is not None and not self._fits(self.target_shape):
            problem = f"they do not make a weight of {self.target_shape}"
        if problem:
            raise no_meaning("a VeRA", self.tensors(), problem)

    def _fits(self, shape: tuple[int, ...]) -> bool:
        wide = self.shared_a.shape[1]
        return len(trimmed(shape)) == 2 and shape[0] == self.lambda_b.shape[0] and columns(shape) <= wide

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight; before the delta is fitted, -1 for its columns."""
        return self.target_shape or (self.lambda_b.shape[0], UNKNOWN)

    @property
    def rank(self) -> int:
        return self.lambda_d.shape[0]

    def tensors(self) -> Mapping[str, Tensor]:
        return {
            "lambda_b": self.lambda_b,
            "lambda_d": self.lambda_d,
            "shared_a": self.shared_a,
            "shared_b": self.shared_b,
        }

    def low_rank(self, dtype: torch.dtype = torch.float32) -> LowRank | None:
        """The layer's own part of the shared factors, times its vectors; None before the delta is fitted."""
        if self.target_shape is None:
            return None
        rows, inside = self.target_shape[0], columns(self.target_shape)
        down = self.lambda_d.to(dtype)[:, None] * self.shared_a[:, :inside].to(dtype)
        up = self.lambda_b.to(dtype)[:, None] * self.shared_b[:rows].to(dtype)
        return LowRank(down.reshape(self.rank, *self.target_shape[1:]), up, 1.0)

    def weight(
        self, base: Tensor | None = None, dtype: torch.dtype = torch.float32, strength: float = 1.0
    ) -> Tensor:
        """The full delta.

        Raises:
            ValueError: it is not fitted to a weight, and there is no `base` to tell its shape.
        """
        fitted = self if base is None else self.fitted(tuple(base.shape))
        pair = None if fitted is None else fitted.low_rank(dtype)
        if fitted is None or pair is None:
            raise ValueError("A VeRA takes its columns from the weight that it is for: fit it to one first.")
        return (pair.up @ pair.down.flatten(1)).mul_(strength).reshape(fitted.shape)

    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        """The same delta for a weight of `shape`, which settles how much of the shared factors it takes."""
        if self.target_shape == shape:
            return self
        known = self.target_shape is None or trimmed(self.target_shape) == trimmed(shape)
        return replace(self, target_shape=tuple(shape)) if known and self._fits(shape) else None
