"""`lorry resize`."""

from __future__ import annotations

from typing import Annotated

import typer

from lorry.cli.console import tell
from lorry.cli.debugging import Debug
from lorry.cli.options import check_apart, find_adapter
from lorry.cli.workbench.options import AsJson, Dialect, Dtype, Out, Plot, Seed, tell_report


def resize(
    file: Annotated[str, typer.Argument(help="An adapter file, or the name of one that lorry ships.")],
    out: Out = None,
    rank: Annotated[int | None, typer.Option(min=1, help="The rank of every layer.")] = None,
    energy: Annotated[
        float | None, typer.Option(help="The share of its squared norm that every layer keeps.")
    ] = None,
    size: Annotated[
        float | None,
        typer.Option(
            metavar="MB", help="The file's size: the ranks are those that keep the most energy in it."
        ),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=RANK",
            help="The rank of layers by name (down_blocks.1, to_q) or kind (attention, convolution); may be "
            "repeated, the last that matches counts.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show what all ranks, energies and sizes would keep, and write nothing."
        ),
    ] = False,
    plot: Plot = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    dialect: Dialect = None,
    as_json: AsJson = False,
    _debug: Debug = False,
) -> None:
    """Cut an adapter down: to a rank, a share of energy, a size in MB, or a rank for each layer.

    Every layer gets the best approximation of its rank; prints what is lost.
    """
    from lorry.cli.progress import bar
    from lorry.workflows.resize import Budget, resize_file
    from lorry.workflows.rules import Rule
    from lorry.workflows.trade_off import preview

    if dry_run:
        chosen = {
            "--rank": rank,
            "--energy": energy,
            "--size": size,
            "--at": at or None,
            "--dialect": dialect,
        }
        check_apart(
            "--dry-run", chosen, "It shows all that there are; without `--out` too nothing is written."
        )
    source = find_adapter(file)
    if dry_run or plot is not None:
        curve = preview(source, dtype=dtype and dtype.value, progress=bar)
        if plot is not None:
            from lorry.cli.plots.trade_off import plot_trade_off

            plot_trade_off(curve, plot)
        if dry_run:
            tell_report(curve, as_json=as_json)
            return
        if not as_json:
            tell(f"the curve: {plot}")
    budget = Budget(rank, energy, size, tuple(Rule.parse(text) for text in at or ()))
    report = resize_file(
        source, out, budget, dtype=dtype and dtype.value, dialect=dialect, seed=seed, progress=bar
    )
    tell_report(report, as_json=as_json)
