"""A table of numbers as colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Cells = Mapping[tuple[str, str], float]
"""{(row, column): number}; what is not there stays empty."""


def draw_heat(
    drawn: Any,
    axis: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Cells,
    *,
    shown: str,
    **colours: Any,
) -> None:
    """Draw numbers as colours, each with its value in it.

    Args:
        drawn, axis: of `figure`.
        rows, columns: names, from the top and from the left.
        cells: the numbers.
        shown: how they are written, as `format` takes it.
        colours: of `imshow`: `cmap`, `vmin`, `vmax`.
    """
    table = [[cells.get((row, column), float("nan")) for column in columns] for row in rows]
    image = axis.imshow(table, aspect="auto", **colours)
    axis.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axis.set_yticks(range(len(rows)), rows)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            if (row, column) in cells:
                value = cells[row, column]
                red, green, blue, _ = image.cmap(image.norm(value))
                dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
                axis.text(
                    x,
                    y,
                    shown.format(value),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="w" if dark else "k",
                )
    drawn.colorbar(image, ax=axis, shrink=0.8)
