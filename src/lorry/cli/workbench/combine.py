"""`lorry combine`."""

from __future__ import annotations

from typing import Annotated

import typer

from lorry.cli.debugging import Debug
from lorry.cli.options import LoraChoice, find_adapter, parse_lora
from lorry.cli.workbench.options import AsJson, Dialect, Dtype, Out, Seed, tell_report


def combine(
    files: Annotated[
        list[LoraChoice],
        typer.Argument(
            metavar="FILE[:FACTOR]...",
            parser=parse_lora,
            help="Adapters of any dialects, families and ranks.",
        ),
    ],
    out: Out = None,
    method: Annotated[
        str,
        typer.Option(metavar="NAME", help="sum, ties, dare, dare-ties, magnitude or orthogonal."),
    ] = "sum",
    density: Annotated[
        float | None,
        typer.Option(help="The share of numbers that ties, dare and magnitude keep; 0.5 when not given."),
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Reduce the result to this rank.")] = None,
    energy: Annotated[
        float | None,
        typer.Option(help="Reduce each layer to the rank that keeps this share of its squared norm."),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=N[,N...]",
            help="A further factor for layers by name (down_blocks.1, to_q, text_encoder) or kind (attention, "
            "convolution): one for all adapters or one for each; may be repeated, the last that matches counts.",
        ),
    ] = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    dialect: Dialect = None,
    as_json: AsJson = False,
    _debug: Debug = False,
) -> None:
    """Combine adapters into one: their exact weighted sum, or another mix; reduced to a rank on request.

    Prints how far the result is from the exact sum.
    """
    from lorry.cli.progress import bar
    from lorry.workflows.combine import combine_files
    from lorry.workflows.recipes import Recipe, get_method
    from lorry.workflows.rules import Rule

    recipe = Recipe(
        get_method(method), density, rank, energy, tuple(Rule.parse(text) for text in at or ()), seed
    )
    sources = [(find_adapter(choice.source), choice.scale) for choice in files]
    report = combine_files(sources, out, recipe, dtype=dtype and dtype.value, dialect=dialect, progress=bar)
    tell_report(report, as_json=as_json)
