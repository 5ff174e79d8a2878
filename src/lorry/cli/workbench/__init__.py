"""The commands that compute with adapter files: one file for each command."""

from __future__ import annotations

import typer

from lorry.cli.workbench.bake import bake
from lorry.cli.workbench.combine import combine
from lorry.cli.workbench.compare import compare
from lorry.cli.workbench.extract import extract
from lorry.cli.workbench.library import library
from lorry.cli.workbench.resize import resize


def add_workbench(app: typer.Typer) -> None:
    """Add the commands to lorry's."""
    for command in (compare, combine, resize, extract, bake, library):
        app.command()(command)
