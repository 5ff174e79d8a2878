"""Plots of the tables, as SVG beside the page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measuring import Row


def plot_rows(title: str, rows: Sequence[Row], path: Path) -> None:
    """Draw both programs' medians of every operation, and the floors, on a logarithmic scale."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = "lorry"  # the same picture has the same bytes
    figure, axes = pyplot.subplots(figsize=(9, 0.42 * len(rows) + 1.4))
    places = range(len(rows))
    for offset, name, colour, pick in (
        (-0.2, "diffusers + PEFT", "#b9b4a8", lambda row: row.theirs),
        (0.2, "lorry", "#c8553d", lambda row: row.ours),
    ):
        medians = [statistics.median(pick(row)) * 1e3 if pick(row) else 0 for row in rows]
        axes.barh([place + offset for place in places], medians, 0.38, label=name, color=colour)
    floors = [(place, row.floor * 1e3) for place, row in enumerate(rows) if row.floor]
    if floors:
        axes.plot(
            [ms for _, ms in floors], [place for place, _ in floors], "k|", markersize=16, label="floor"
        )
    axes.set_yticks(list(places), [row.operation for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds (median)")
    axes.set_title(title, loc="left")
    axes.legend(loc="lower right", frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
