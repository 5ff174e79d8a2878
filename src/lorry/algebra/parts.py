"""What an adapter adds to a module's bias, beside (or without) what it adds to its weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from lorry.algebra._channels import pad_channels
from lorry.algebra._rows import cut_rows
from lorry.algebra._shapes import Spans
from lorry.algebra.base import Delta, LowRank
from lorry.errors import FormatError


@final
@dataclass(frozen=True, eq=False, slots=True)
class PartsDelta(Delta):
    """One delta for the weight, or none, and one for the bias. Each keeps its own formula.

    What it says of itself (shape, rank, family) is what its weight's delta says.
    """

    on_weight: Delta | None
    on_bias: Delta
    """Of shape (out)."""

    def __post_init__(self) -> None:
        if len(self.on_bias.shape) != 1:
            raise FormatError(
                f"a delta of {self.on_bias.shape} for a bias has no meaning: expected one axis."
            )

    @property
    def family(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The weight's family, and that a bias comes with it."""
        return "bias" if self.on_weight is None else f"{self.on_weight.family} with bias"

    def part(self, parameter: str) -> Delta | None:
        return {"weight": self.on_weight, "bias": self.on_bias}.get(parameter)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.on_weight or self.on_bias).shape

    @property
    def rank(self) -> int | None:
        return None if self.on_weight is None else self.on_weight.rank

    @property
    def rank_scale(self) -> float:
        return (self.on_weight or self.on_bias).rank_scale

    def tensors(self) -> Mapping[str, Tensor]:
        weight = {} if self.on_weight is None else self.on_weight.tensors()
        return {**weight, **{f"bias_{name}": tensor for name, tensor in self.on_bias.tensors().items()}}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        bias = {name.removeprefix("bias_"): t for name, t in tensors.items() if name.startswith("bias_")}
        weight = {name: tensor for name, tensor in tensors.items() if not name.startswith("bias_")}
        on_weight = None if self.on_weight is None else self.on_weight.with_tensors(weight)
        return replace(self, on_weight=on_weight, on_bias=self.on_bias.with_tensors(bias))

    def weight(
        self, base: Tensor | None = None, dtype: torch.dtype = torch.float32, strength: float = 1.0
    ) -> Tensor:
        """The delta of the weight.

        Raises:
            ValueError: there is none.
        """
        if self.on_weight is None:
            raise ValueError("This delta changes a bias only: ask `part('bias')`.")
        return self.on_weight.weight(base, dtype, strength)

    def adds_nothing(self) -> bool:
        return all(part.adds_nothing() for part in (self.on_weight, self.on_bias) if part is not None)

    def low_rank(self, dtype: torch.dtype = torch.float32) -> LowRank | None:
        return None if self.on_weight is None else self.on_weight.low_rank(dtype)

    def exact_factors(self, dtype: torch.dtype = torch.float32) -> LowRank | None:
        return None if self.on_weight is None else self.on_weight.exact_factors(dtype)

    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        on_weight = None if self.on_weight is None else self.on_weight.fitted(shape)
        if shape[0] != self.on_bias.shape[0] or (on_weight is None) != (self.on_weight is None):
            return None
        return replace(self, on_weight=on_weight)

    @property
    def needs_base(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether either of its deltas does."""
        return any(delta.needs_base for delta in (self.on_weight, self.on_bias) if delta is not None)

    def rows(self, spans: Spans) -> Self:
        on_weight = None if self.on_weight is None else cut_rows(self.on_weight, spans)
        return replace(self, on_weight=on_weight, on_bias=cut_rows(self.on_bias, spans))

    def padded(self, shape: tuple[int, ...]) -> Self | None:
        if self.on_weight is None:
            return self.fitted(shape)
        on_weight = pad_channels(self.on_weight, shape)
        return None if on_weight is None else replace(self, on_weight=on_weight)

    def narrowed(self, channels: int) -> Self | None:
        if self.on_weight is None:
            return self
        on_weight = self.on_weight.narrowed(channels)
        return None if on_weight is None else replace(self, on_weight=on_weight)
