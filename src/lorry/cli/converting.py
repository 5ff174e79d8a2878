"""`lorry convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorry.cli.debugging import Debug
from lorry.cli.options import find_adapter, find_base
from lorry.cli.workbench.options import AsJson, tell_report

WRITTEN = (
    "kohya",
    "onetrainer",
    "diffusers",
    "peft",
    "comfyui",
    "omi",
    "lycoris",
    "xlabs",
    "dotted-kohya",
    "lora-layers",
    "attention-processors",
    "stable-audio",
)
"""Named here, so that the help needs no torch; a test compares."""


def convert(
    file: Annotated[
        str, typer.Argument(help="An adapter file or folder, or the name of one that lorry ships.")
    ],
    out: Annotated[
        Path, typer.Argument(help="Where to write: a .safetensors file; for peft a folder, without a suffix.")
    ],
    to: Annotated[str, typer.Option(metavar="DIALECT", help=f"One of {', '.join(WRITTEN)}.")],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER",
            help="The base model that it is for: sd15, sdxl, flux, …, a pipeline's folder, or shipped; told from the "
            "file when not given.",
        ),
    ] = None,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate",
            help="Write what the dialect cannot carry as a LoRA by SVD, and print the error of each.",
        ),
    ] = False,
    rank: Annotated[int | None, typer.Option(min=1, help="Of those LoRAs; 32 when not given.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an adapter that is there already.")
    ] = False,
    as_json: AsJson = False,
    _debug: Debug = False,
) -> None:
    """Write an adapter in another dialect: the same tensors under other names, or an error that says why not."""
    from lorry.jobs import convert as convert_file

    base = base and find_base(base)
    report = convert_file(
        find_adapter(file), out, to, base, approximate=approximate, rank=rank, overwrite=overwrite
    )
    tell_report(report, as_json=as_json)
