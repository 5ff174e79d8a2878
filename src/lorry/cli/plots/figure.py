"""What all pictures share: the figure, its look, and how it is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorry.errors import FileError, StateError

ENDINGS = (".png", ".svg", ".pdf")
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "font.size": 9,
    "svg.hashsalt": "lorry",
}
COLOURS = ("#1f6f8b", "#d1495b", "#66a182", "#edae49", "#6a4c93", "#444444")
HEAT = "magma_r"
"""From nothing (light) to much (dark)."""


@contextmanager
def figure(path: Path, rows: int, columns: int, width: float, height: float) -> Iterator[Any]:
    """Give (figure, axes) to draw on, and write them to `path` afterwards.

    Args:
        path: ends in .png, .svg or .pdf.
        rows, columns: of axes.
        width, height: in inches, at 120 dots an inch.

    Raises:
        StateError: matplotlib is not installed, or `path` has another ending.
        FileError: the file cannot be written.
    """
    if path.suffix.lower() not in ENDINGS:
        raise StateError(f"{path}: expected a picture's name, which ends in {', '.join(ENDINGS)}.")
    if not path.parent.is_dir():
        raise FileError(f"{path}: there is no folder {path.parent}. Make it first.")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise StateError("Pictures need matplotlib: `pip install 'lorry[plot]'`.") from error
    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=(width, height), dpi=120, layout="constrained")
        yield drawn, drawn.subplots(rows, columns, squeeze=False)
        try:
            drawn.savefig(path)
        except OSError as error:
            raise FileError(f"{path}: cannot be written: {error.strerror}.") from error
