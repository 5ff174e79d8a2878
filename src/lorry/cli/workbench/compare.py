"""`lorry compare`."""

from __future__ import annotations

from typing import Annotated

import typer

from lorry.cli.debugging import Debug
from lorry.cli.options import find_adapter
from lorry.cli.workbench.options import AsJson, Plot, tell_report


def compare(
    one: Annotated[
        str, typer.Argument(metavar="A", help="An adapter file, or the name of one that lorry ships.")
    ],
    two: Annotated[str, typer.Argument(metavar="B", help="Another one, of any dialect and family.")],
    plot: Plot = None,
    as_json: AsJson = False,
    _debug: Debug = False,
) -> None:
    """Say where and how much two adapters overlap, and whether they will fight when mixed.

    cosine: of the two deltas; below 0 they undo each other. reads, writes: the share of their energy on the same inputs
    and outputs. shared: on both at once, beside what chance would give. |A+B|: against deltas at a right angle.
    """
    from lorry.cli.progress import bar
    from lorry.workflows.compare import compare_files

    report = compare_files(find_adapter(one), find_adapter(two), progress=bar)
    if plot is not None:
        from lorry.cli.plots.overlaps import plot_comparison

        plot_comparison(report, plot)
    tell_report(report, as_json=as_json)
