"""How strongly an adapter acts on a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, slots=True)
class Strength:
    """An adapter's strength: one number, or a number by module path with one for all others."""

    value: float = 1.0
    by_path: Mapping[str, float] | None = None

    def at(self, path: str) -> float:
        """Return the strength at a module."""
        return self.value if self.by_path is None else self.by_path.get(path, self.value)

    def times(self, factor: float) -> Strength:
        """Return this strength scaled by `factor`."""
        if factor == 1.0:
            return self
        by_path = None if self.by_path is None else {path: s * factor for path, s in self.by_path.items()}
        return Strength(self.value * factor, by_path)

    def __str__(self) -> str:
        return f"{self.value:g}" if self.by_path is None else "by block"
