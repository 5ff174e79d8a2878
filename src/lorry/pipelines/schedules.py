"""Strengths that change from one denoising step to the next. Steps count from 1."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from lorry.errors import StateError

Schedule = Callable[[int, int], float]
"""(step, number of steps) -> the factor on the strength in that step. The first step is 1."""


@final
@dataclass(frozen=True, slots=True)
class Points:
    """A factor that goes in a straight line from point to point; before the first and after the last it stays.

    Positions are shares of the way from the first step to the last where none is above 1, else steps. Of two points at
    one place, the later one holds from there on.
    """

    points: tuple[tuple[float, float], ...]
    """(position, factor), by rising position."""

    @classmethod
    def of(cls, given: Sequence[object]) -> Points:
        """Take a user's points.

        Raises:
            StateError: they are not pairs of numbers by rising position.
        """
        points: list[tuple[float, float]] = []
        for point in given:
            match point:
                case (int() | float() as at, int() | float() as factor):
                    points.append((float(at), float(factor)))
                case _:
                    raise StateError(
                        f"`steps`: expected (position, factor) pairs such as [(0, 1), (0.5, 0)], got {given!r}."
                    )
        if not points or sorted(points, key=lambda point: point[0]) != points:
            raise StateError(f"`steps`: expected points by rising position, got {given!r}.")
        return cls(tuple(points))

    def __call__(self, step: int, steps: int) -> float:
        is_share = self.points[-1][0] <= 1
        at = ((step - 1) / (steps - 1) if steps > 1 else 0.0) if is_share else float(step)
        after = bisect_right(self.points, at, key=lambda point: point[0])
        if after in (0, len(self.points)):
            return self.points[max(after - 1, 0)][1]
        (left, low), (right, high) = self.points[after - 1 : after + 1]
        return low + (high - low) * (at - left) / (right - left)


@final
@dataclass(frozen=True, slots=True)
class Between:
    """1 from the step `start` on until before the step `stop`, else 0. A float is a share of the steps."""

    start: int | float | None = None
    stop: int | float | None = None

    def __call__(self, step: int, steps: int) -> float:
        return float(
            (self.start is None or not _before(step, steps, self.start))
            and (self.stop is None or _before(step, steps, self.stop))
        )


def _before(step: int, steps: int, place: int | float) -> bool:
    return (step - 1) / steps < place if isinstance(place, float) else step < place


@final
@dataclass(frozen=True, slots=True)
class Times:
    """The product of schedules."""

    schedules: tuple[Schedule, ...]

    def __call__(self, step: int, steps: int) -> float:
        product = 1.0
        for schedule in self.schedules:
            product *= schedule(step, steps)
        return product
