"""What is lost where a weight with adapters fused into it is quantized again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self, final

import torch
from torch import Tensor


@final
@dataclass(frozen=True, slots=True)
class FuseLoss:
    """How a quantized sum differs from the exact one, the dequantized base + the float32 delta. Sums of squares."""

    weight: float
    """Of the exact sum."""
    missed: float
    """Of the difference between the quantized sum and the exact one."""
    change: float
    """Of the delta."""
    along: float
    """The product of the delta and of what the weight has really changed by."""

    @classmethod
    def of(cls, base: Tensor, exact: Tensor, got: Tensor) -> Self:
        """Measure one weight: what it was, what it should be, and what it is."""
        base, exact, got = (tensor.double() for tensor in (base, exact, got))
        delta = exact - base
        sums = (exact.square(), (got - exact).square(), delta.square(), (got - base) * delta)
        return cls(*torch.stack([one.sum() for one in sums]).tolist())

    @classmethod
    def total(cls, losses: Iterable[FuseLoss]) -> FuseLoss:
        """Add those of several layers up."""
        sums = [(one.weight, one.missed, one.change, one.along) for one in losses]
        return cls(*map(sum, zip(*sums, strict=True))) if sums else cls(0.0, 0.0, 0.0, 0.0)

    @property
    def error(self) -> float:
        """The difference, as a part of the exact sum (root of mean squares)."""
        return (self.missed / self.weight) ** 0.5 if self.weight else 0.0

    @property
    def survives(self) -> float:
        """The part of the delta that arrives: 1 where all of it does, 0 where rounding takes it back."""
        return self.along / self.change if self.change else 1.0

    @property
    def noise(self) -> float:
        """The difference, as a part of the delta: above 1, rounding moves the weight by more than the adapter does."""
        return (self.missed / self.change) ** 0.5 if self.change else 0.0

    def __str__(self) -> str:
        off = f"off by {self.error:.1e} of the weight, {self.noise:.0%} of the change"
        return f"{off}; {self.survives:.0%} of it arrives"


@final
@dataclass(frozen=True, slots=True)
class FuseLosses:
    """What `fuse_lora(lossy=True)` has lost, by layer. It is false where nothing was quantized again."""

    by_layer: Mapping[str, FuseLoss] = field(default_factory=dict)
    """By `component.path.weight`."""

    @property
    def total(self) -> FuseLoss:
        """All layers together."""
        return FuseLoss.total(self.by_layer.values())

    def __bool__(self) -> bool:
        return bool(self.by_layer)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        if not self.by_layer:
            yield "nothing was quantized again"
            return
        yield f"{len(self.by_layer)} weights were quantized again: {self.total}"
        worst = sorted(self.by_layer.items(), key=lambda item: -item[1].noise)[:3]
        for name, loss in worst:
            yield f"  `{name}`: {loss}"
