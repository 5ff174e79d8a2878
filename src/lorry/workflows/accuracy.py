"""How far a result is from what it stands for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch

from lorry.adapters.matrices import distance, matrix_of, needs_base, norm_of
from lorry.algebra import Delta

FLOOR = 2e-7
"""Relative errors under this are rounding of the measurement itself."""


@final
@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors in the Frobenius norm: of all layers together, and of the worst."""

    total: float
    worst: float
    worst_at: str | None
    """The layer with the largest error; None where there is none to speak of."""

    def __str__(self) -> str:
        if self.total <= FLOOR and self.worst <= FLOOR:
            return "equal, to rounding in float32"
        return f"error {self.total:.3g} of its norm, at most {self.worst:.3g} at {self.worst_at}"


@final
@dataclass
class ErrorSum:
    """Adds up the errors of layers."""

    layers: dict[str, tuple[float, float]] = field(default_factory=dict)
    """(squared error, squared norm) by layer."""

    def add(self, name: str, got: Delta | None, exact: Delta | None) -> None:
        """Count one layer; where both are the same object, or one of them cannot be told without a base, as exact."""
        if got is exact or exact is None or needs_base(exact):
            return
        error = norm = 0.0
        for part in ("weight", "bias"):
            one, two = (None if delta is None else delta.part(part) for delta in (got, exact))
            if two is None or one is two:
                continue
            expected = matrix_of(two, torch.float64)
            norm += norm_of(expected) ** 2
            error += (
                norm_of(expected) if one is None else distance(matrix_of(one, torch.float64), expected)
            ) ** 2
        self.put(name, error, norm)

    def put(self, name: str, error: float, norm: float) -> None:
        """Count one layer by its squared error and its squared norm."""
        self.layers[name] = (error, norm)

    def total(self) -> Errors:
        """The sum so far."""
        error, norm = (sum(pair[n] for pair in self.layers.values()) for n in (0, 1))
        each = {name: _relative(*pair) for name, pair in self.layers.items()}
        worst = max(each, key=lambda name: each[name], default=None)
        return Errors(_relative(error, norm), each[worst] if worst else 0.0, worst)


def _relative(error: float, norm: float) -> float:
    return (error / norm) ** 0.5 if norm > 0 else 0.0
