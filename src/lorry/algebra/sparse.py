"""A low-rank delta with a sparse correction: what a LoRA extracted from a model was off by most."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from lorry.algebra._around import AroundDelta
from lorry.algebra._shapes import columns, no_meaning
from lorry.algebra.base import Delta


@final
@dataclass(frozen=True, eq=False, slots=True)
class SparseDelta(AroundDelta):
    """`inner + scale * sparse`, with `values` at `indices` of the sparse matrix and zeros elsewhere.

    `scale` is that of the inner delta. It is as linear in the strength as the inner delta is.

    Source: KohakuBlueleaf/LyCORIS, `lycoris/utils/__init__.py` (`extract_diff` with `use_bias`), and
    AUTOMATIC1111/stable-diffusion-webui, `extensions-builtin/Lora/network.py` (`finalize_updown`), for the scale.
    """

    inner: Delta
    """What it corrects."""
    values: Tensor
    """(count)."""
    indices: Tensor
    """(2, count), whole numbers: row, and column among in * kh * kw. It is no part of `tensors`, which are numbers of
    floating point that may be moved and cast."""

    family: ClassVar[str] = "LoRA with a sparse difference"
    own_tensors: ClassVar[tuple[str, ...]] = ("values",)

    def __post_init__(self) -> None:
        problem = None
        if self.values.ndim != 1 or tuple(self.indices.shape) != (2, self.values.numel()):
            problem = "expected a row and a column for each value"
        elif not self.indices.is_meta and not self._is_inside():
            problem = f"an index lies outside of {self.inner.shape}"
        if problem:
            raise no_meaning("a sparse difference", {"values": self.values, "indices": self.indices}, problem)

    def _is_inside(self) -> bool:
        rows, width = self.inner.shape[0], columns(self.inner.shape)
        size = torch.tensor([[rows], [width]], device=self.indices.device)
        return bool(((self.indices >= 0) & (self.indices < size)).all())

    @property
    def needs_base(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the inner delta does."""
        return self.inner.needs_base

    def weight(
        self, base: Tensor | None = None, dtype: torch.dtype = torch.float32, strength: float = 1.0
    ) -> Tensor:
        whole = self.inner.weight(base, dtype, strength)
        row, column = self.indices.to(whole.device, torch.long)
        values = self.values.to(dtype) * (strength * self.rank_scale)
        whole.flatten(1).index_put_((row, column), values, accumulate=True)
        return whole

    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        inner = self.inner.fitted(shape)
        if inner is None or inner is self.inner:
            return None if inner is None else self
        return replace(self, inner=inner)
