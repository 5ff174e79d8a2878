"""The bar that tells how far long work is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lorry.cli.console import console


def bar(items: Sequence[Any], what: str) -> Iterable[Any]:
    """Go through items with a bar on standard error, which is gone at the end; none where that is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    said = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=said, transient=True, disable=not said.is_terminal) as progress:
        yield from progress.track(items, description=what)
