"""How strongly an adapter acts on a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Final, cast, final

import torch

from lorry.errors import StateError

Step = tuple[int, int]
"""A denoising step, counted from 1, and how many there are."""
LARGEST: Final = torch.finfo(torch.float32).max


def is_strength(number: Real | float) -> bool:
    """Whether a number is finite in float32, which strengths are computed in."""
    return abs(float(number)) <= LARGEST


def check_strength(given: object, where: str) -> float:
    """Return a user's strength as a float.

    Args:
        given: what the user wrote.
        where: what it was written for, which begins the message.

    Raises:
        StateError: it is no number, a NaN, or infinite, be it in float32 alone.
    """
    if getattr(given, "ndim", None) == 0:
        given = cast("Any", given).item()  # a tensor or an array that is one number
    if isinstance(given, bool) or not isinstance(given, Real):
        raise StateError(f"{where}: expected a number, got {given!r}.")
    if not is_strength(given):
        raise StateError(
            f"{where}: expected a finite number, got {float(given)}; float32 holds {LARGEST:.2g} at most."
        )
    return float(given)


@final
@dataclass(frozen=True, slots=True)
class Strength:
    """An adapter's strength: one number, or a number by module path with one for all others, and what it is by step."""

    value: float = 1.0
    by_path: Mapping[str, float] | None = None
    steps: Callable[[int, int], float] | None = None
    """(step, number of steps) -> the factor on all of it in that step."""

    def at(self, path: str) -> float:
        """Return the strength at a module."""
        return self.value if self.by_path is None else self.by_path.get(path, self.value)

    def times(self, factor: float) -> Strength:
        """Return this strength scaled by `factor`."""
        if factor == 1.0:
            return self
        by_path = None if self.by_path is None else {path: s * factor for path, s in self.by_path.items()}
        return Strength(self.value * factor, by_path, self.steps)

    def in_step(self, step: Step | None) -> Strength:
        """Return what this strength is in a step; outside of all steps, what it is where nothing changes by step."""
        if self.steps is None:
            return self
        fixed = replace(self, steps=None)
        return fixed if step is None else fixed.times(float(self.steps(*step)))

    def __str__(self) -> str:
        where = f"{self.value:g}" if self.by_path is None else "by block"
        return where if self.steps is None else f"{where} by step"
