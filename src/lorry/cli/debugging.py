"""The option `--debug` that every command has."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

_DEBUG: Final = "lorry.debug"


def _remember(ctx: typer.Context, value: bool) -> bool:
    ctx.meta[_DEBUG] = value
    return value


def wants_debug(ctx: Any) -> bool:
    """Whether the command that was run was given `--debug`."""
    return bool(ctx.meta.get(_DEBUG))


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", callback=_remember)]
