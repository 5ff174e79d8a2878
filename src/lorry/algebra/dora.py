"""DoRA: another family's delta gives the direction of each row or column, and a magnitude its length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from lorry.algebra._around import AroundDelta
from lorry.algebra._rows import cut_rows
from lorry.algebra._shapes import UNKNOWN, Spans, are_all, needed, no_meaning, take_rows
from lorry.algebra.base import Delta


@final
@dataclass(frozen=True, eq=False, slots=True)
class DoraDelta(AroundDelta):
    """`magnitude / norm(V) * V - W`, where V is W plus the whole inner delta, and the norm is of each row of V.

    With `on_input` it is of each column. Norms run over all other axes, kernels too. A row of zeros stays zero.

    It is linear in the strength: W' = W + strength * (W'_1 - W), which alone of the rules in use leaves W at 0. LyCORIS
    and PEFT have other rules, which agree at 1.

    Source: Liu et al., DoRA (arXiv:2402.09353), section 4.1, per column of a weight that is (in, out) there. `on_input`
    is the reading of early LyCORIS and of OneTrainer.
    """

    inner: Delta
    """The delta that gives the direction: a LoRA, LoHa or LoKr."""
    magnitude: Tensor
    """(out), or (in) with `on_input`, with any axes of 1 around."""
    on_input: bool = False

    family: ClassVar[str] = "DoRA"
    needs_base: ClassVar[bool] = True
    own_tensors: ClassVar[tuple[str, ...]] = ("magnitude",)

    def __post_init__(self) -> None:
        size = self.inner.shape[self.on_input]
        problem = None
        if self.magnitude.numel() != max(self.magnitude.shape, default=0):
            problem = "expected one axis longer than 1"
        elif size not in (UNKNOWN, self.magnitude.numel()) and not self._may_divide(size):
            problem = f"expected {size} numbers for the {self._side} of {self.inner.shape}"
        if problem:
            raise no_meaning(f"a DoRA over {self.inner.family}", {"magnitude": self.magnitude}, problem)

    @property
    def _side(self) -> str:
        return "columns" if self.on_input else "rows"

    def _may_divide(self, size: int) -> bool:
        """Whether the inner delta, not yet fitted, may count in * kh * kw columns where there are fewer."""
        return self.on_input and len(self.inner.shape) == 2 and size % self.magnitude.numel() == 0

    def weight(
        self, base: Tensor | None = None, dtype: torch.dtype = torch.float32, strength: float = 1.0
    ) -> Tensor:
        """The full delta, for which the base weight is needed.

        Raises:
            ValueError: there is no base, or it is of another shape (ShapeMismatchError).
        """
        fitted = None if base is None else self.fitted(tuple(base.shape))
        weight = needed(base, "a DoRA", fitted is not None).to(self.magnitude.device, dtype)
        inner = self.inner if fitted is None else fitted.inner
        change = inner.weight(weight, dtype)
        ratio = self._ratio(weight, change)
        # W'_1 - W, with W'_1 = ratio * V, is change + (ratio - 1) * V.
        return torch.addcmul(change, (ratio - 1).to(dtype), weight + change).mul_(strength)

    def _ratio(self, weight: Tensor, change: Tensor) -> Tensor:
        """Magnitude by norm. What counts is how far it is from 1, where float32 has few digits left."""
        wide = torch.float32 if weight.device.type == "mps" else torch.float64  # MPS has no float64
        axes = [axis for axis in range(weight.ndim) if axis != self.on_input]
        norm = torch.linalg.vector_norm(weight.to(wide) + change.to(wide), dim=axes, keepdim=True)
        # A row of zeros is divided by 1: of a division by 0, even of one that is not used, autograd makes NaN.
        ratio = self.magnitude.to(wide).flatten().reshape(norm.shape) / torch.where(norm == 0, 1, norm)
        return torch.where(norm == 0, 1, ratio)

    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        inner = self.inner.fitted(shape)
        if inner is None or shape[self.on_input] != self.magnitude.numel():
            return None
        return self if inner is self.inner else replace(self, inner=inner)

    def rows(self, spans: Spans) -> Self | None:
        """The same for some rows; with `on_input`, for all in another order: a column's norm is over all of them."""
        if self.on_input and not are_all(spans, self.shape[0]):
            return None
        own = self.inner.rows(spans) if self.inner.needs_base else cut_rows(self.inner, spans)
        if own is None:
            return None
        magnitude = self.magnitude if self.on_input else take_rows(self.magnitude.flatten(), spans)
        return replace(self, inner=own, magnitude=magnitude)
