"""What an adapter keeps at each size."""

from __future__ import annotations

from pathlib import Path

from lorry.cli.plots.figure import COLOURS, figure
from lorry.workflows.trade_off import WAYS, Curve


def plot_trade_off(curve: Curve, path: Path) -> None:
    """Draw the share of energy that is lost against the file's size, for each way of choosing ranks.

    Raises:
        StateError: matplotlib is not installed.
        FileError: the file cannot be written.
    """
    with figure(path, 1, 1, 8, 5) as (_, axes):
        axis = axes[0, 0]
        for colour, (way, (title, _)) in zip(COLOURS, WAYS.items(), strict=False):
            points = [point for point in curve.points if point.way == way and point.kept < 1]
            lost = [100 * (1 - point.kept) for point in points]
            axis.plot([point.megabytes for point in points], lost, "o-", color=colour, label=title, ms=4)
            for point, value in zip(points, lost, strict=True):
                if way == "rank":
                    axis.annotate(
                        f"rank {point.setting:g}",
                        (point.megabytes, value),
                        (4, 4),
                        textcoords="offset points",
                    )
        axis.axvline(curve.size / 1e6, color=COLOURS[-1], lw=1, ls=":", label="the file today")
        axis.set(
            xlabel="file size, MB",
            ylabel="energy lost, %",
            yscale="log",
            title=f"{Path(curve.source).name}: what a smaller file loses",
        )
        axis.set_xlim(left=0)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
