"""The losses of a run: a table that grows with every step, and a picture of it."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Final, final

from lorry.training.extras import needed

TABLE: Final = "losses.csv"
CURVE: Final = "losses.png"
_HEAD: Final = ("step", "loss", "rate")
_SMOOTHING: Final = 0.96


@final
class Records:
    """`losses.csv` in the folder of a run, a line a step."""

    def __init__(self, out: Path, done: int) -> None:
        """Open the table; lines after step `done`, of a run that was broken off, are dropped."""
        self._path = out / TABLE
        self.rows = [row for row in _read(self._path) if row[0] <= done]
        with self._path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([_HEAD, *self.rows])

    def add(self, step: int, loss: float, rate: float) -> None:
        """Write the line of a step."""
        self.rows.append((step, loss, rate))
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow((step, loss, rate))

    @property
    def average(self) -> float:
        """The loss of the last steps, about fifty of them, the later the more; nan where the table is gone."""
        return smoothed([loss for _, loss, _ in self.rows[-200:]])[-1] if self.rows else math.nan

    def draw(self) -> Path:
        """Draw the losses and their average into `losses.png`."""
        needed("matplotlib", "The picture of the losses")
        from matplotlib.figure import Figure

        steps, losses = [row[0] for row in self.rows], [row[1] for row in self.rows]
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        axes.plot(steps, losses, color="#b8c4d6", linewidth=0.7, label="each step")
        axes.plot(steps, smoothed(losses), color="#1f4e8c", linewidth=1.8, label="average")
        axes.set(xlabel="step", ylabel="loss", xlim=(0, max(steps, default=1)))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        draft = self._path.with_name(f".{CURVE}")
        figure.savefig(draft, format="png", dpi=110)
        return draft.replace(self._path.with_name(CURVE))


def smoothed(values: list[float]) -> list[float]:
    """Return the exponential average up to each value, without the pull towards the first one."""
    found, total, weight = [], 0.0, 0.0
    for value in values:
        total = _SMOOTHING * total + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + 1 - _SMOOTHING
        found.append(total / weight)
    return found


def _read(path: Path) -> list[tuple[int, float, float]]:
    """The lines of a table that may have been cut off in the middle of the last one."""
    if not path.is_file():
        return []
    rows = []
    for line in csv.reader(path.read_text(encoding="utf-8").splitlines()[1:]):
        try:
            rows.append((int(line[0]), float(line[1]), float(line[2])))
        except (ValueError, IndexError):
            continue
    return rows
