"""The options that several commands of the workbench share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lorry.cli.console import tell
from lorry.cli.options import LARGEST_SEED


class StoredDtype(StrEnum):
    """The dtypes that adapters are written in."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="FILE", help="Where to write; nothing is written without."),
]
Dtype = Annotated[StoredDtype | None, typer.Option(help="To write in; the source's when not given.")]
Dialect = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="To write in; the source's when not given and lorry writes that, else kohya's."
    ),
]
Plot = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A picture of the numbers (.png, .svg or .pdf).")
]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of all random numbers.")]


def tell_report(report: Any, *, as_json: bool) -> None:
    """Print a report for people, or as JSON."""
    import json

    tell(json.dumps(report.as_dict(), indent=2, ensure_ascii=False, default=str) if as_json else report)
