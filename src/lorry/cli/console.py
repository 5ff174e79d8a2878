"""The two consoles, and how an error looks."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@cache
def console(*, stderr: bool = False) -> Console:
    """Return the console of standard output, or of standard error, which is for progress and errors."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, emoji=False, soft_wrap=True)


def tell(text: object = "", style: str = "") -> None:
    """Print text as it is: no markup, and no line broken in a path."""
    console().print(str(text), style=style, markup=False, emoji=False)


def tell_error(error: BaseException, told: str = "") -> None:
    """Print an error as a message: what is wrong in red but for an end that was `told`, what was being done below."""
    said = console(stderr=True)
    said.print(f"error: {str(error).removesuffix(told)}", style="red", markup=False, emoji=False)
    for note in getattr(error, "__notes__", ()):
        said.print(f"  {note}", style="dim", markup=False, emoji=False)
