"""`lorry extract`."""

from __future__ import annotations

from typing import Annotated

import typer

from lorry.cli.debugging import Debug
from lorry.cli.options import find_base
from lorry.cli.workbench.options import AsJson, Out, Seed, StoredDtype, tell_report


def extract(
    base: Annotated[
        str, typer.Argument(help="The checkpoint that was fine-tuned: a folder or a single file.")
    ],
    tuned: Annotated[str, typer.Argument(help="What came of it: a folder or a single file.")],
    out: Out = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="The rank of every layer; 16 when nothing is given.")
    ] = None,
    energy: Annotated[
        float | None, typer.Option(help="The share of its squared change that every layer keeps.")
    ] = None,
    kronecker: Annotated[
        int | None,
        typer.Option(metavar="FACTOR", min=1, help="Make LoKr of this factor; --rank is that of w2."),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=RANK",
            help="The rank of layers by name (down_blocks.1, to_q) or kind (attention, convolution); may be repeated, "
            "the last that matches counts.",
        ),
    ] = None,
    diffs: Annotated[
        bool, typer.Option("--diffs", help="Take norms and biases along as full differences.")
    ] = False,
    least: Annotated[
        float,
        typer.Option(min=0, help="Leave out layers that changed by no more than this share of their norm."),
    ] = 0.0,
    component: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="unet, transformer, text_encoder, …; all when not given; may be repeated."
        ),
    ] = None,
    seed: Seed = 0,
    dtype: Annotated[StoredDtype, typer.Option(help="To write in.")] = StoredDtype.FLOAT16,
    dialect: Annotated[
        str | None, typer.Option(metavar="NAME", help="To write in; kohya's when not given.")
    ] = None,
    as_json: AsJson = False,
    _debug: Debug = False,
) -> None:
    """Pull an adapter out of a fine-tuned checkpoint: its difference from the base, in LoRA, LoCon or LoKr.

    One layer at a time is in memory. Prints how far the adapter is from the change.
    """
    from lorry.cli.progress import bar
    from lorry.workflows.extract import Form, extract_files
    from lorry.workflows.rules import Rule

    rank = 16 if rank is None and energy is None and kronecker is None else rank
    rules = tuple(Rule.parse(text) for text in at or ())
    form = Form(rank, energy, kronecker, rules, diffs, least, seed)
    report = extract_files(
        find_base(base),
        find_base(tuned),
        out,
        form,
        components=component or (),
        dtype=dtype.value,
        dialect=dialect,
        progress=bar,
    )
    tell_report(report, as_json=as_json)
