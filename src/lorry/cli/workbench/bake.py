"""`lorry bake`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorry.cli.debugging import Debug
from lorry.cli.options import LoraChoice, find_adapter, find_base, parse_lora
from lorry.cli.workbench.options import AsJson, StoredDtype, tell_report


def bake(
    base: Annotated[
        str, typer.Argument(help="A checkpoint: a pipeline's folder, a component's, or a single file.")
    ],
    files: Annotated[
        list[LoraChoice],
        typer.Argument(metavar="FILE[:STRENGTH]...", parser=parse_lora, help="The adapters to fuse into it."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="PATH", help="A new folder or file, as the checkpoint is.")
    ],
    dtype: Annotated[
        StoredDtype | None, typer.Option(help="To write changed files in; as they are when not given.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Fuse what fits, where an adapter has parts with no place.")
    ] = False,
    as_json: AsJson = False,
    _debug: Debug = False,
) -> None:
    """Fuse adapters into a checkpoint for good, in one rounding, one tensor at a time.

    The header says what went in.
    """
    from lorry.cli.progress import bar
    from lorry.workflows.bake import bake_files

    sources = [(find_adapter(choice.source), choice.scale) for choice in files]
    chosen = None if dtype is None else dtype.value
    report = bake_files(find_base(base), sources, out, dtype=chosen, strict=not partial, progress=bar)
    tell_report(report, as_json=as_json)
