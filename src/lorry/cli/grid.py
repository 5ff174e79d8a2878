"""Pictures in labelled rows and columns, as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

from PIL import Image, ImageDraw

from lorry.letters import drawable, wrapped

PAPER, INK, FAINT = "#faf9f6", "#1d1d1f", "#6f6f75"
GAP: Final = 8
MARGIN: Final = 24
LABELS: Final = 190
"""The width of the column of labels."""
SMALLEST: Final = 128
"""Smaller pictures are enlarged to this width, in whole steps."""
LARGEST: Final = 512


@final
@dataclass(frozen=True, eq=False, slots=True)
class Panel:
    """Pictures that share their labels."""

    title: str
    columns: Sequence[str]
    rows: Sequence[str]
    cells: Mapping[tuple[int, int], Image.Image | str]
    """{(row, column): a picture, or why there is none}; a cell that is left out stays empty."""


def draw_grid(panels: Sequence[Panel]) -> Image.Image:
    """Return one picture of all panels, one below the other."""
    cell = _cell_size(panels)
    header = 8 + 16 * max((_lines(label, cell[0]) for panel in panels for label in panel.columns), default=0)
    heights = [_height(panel, cell, header) for panel in panels]
    columns = max(len(panel.columns) for panel in panels)
    width = 2 * MARGIN + LABELS + columns * (cell[0] + GAP)
    sheet = Image.new("RGB", (width, 2 * MARGIN + sum(heights)), PAPER)
    top = MARGIN
    for panel, height in zip(panels, heights, strict=True):
        _draw_panel(sheet, panel, top, cell, header)
        top += height
    return sheet


def _cell_size(panels: Sequence[Panel]) -> tuple[int, int]:
    pictures = [cell for panel in panels for cell in panel.cells.values() if isinstance(cell, Image.Image)]
    width = max((picture.width for picture in pictures), default=SMALLEST)
    height = max((picture.height for picture in pictures), default=SMALLEST)
    enlarged = max(1, SMALLEST // width)
    shrunk = min(1.0, LARGEST / max(width, height))
    return round(width * enlarged * shrunk), round(height * enlarged * shrunk)


def _lines(label: str, width: int) -> int:
    return min(3, len(wrapped(label, 14, width)[0]))


def _height(panel: Panel, cell: tuple[int, int], header: int) -> int:
    return (28 if panel.title else 0) + header + len(panel.rows) * (cell[1] + GAP) + GAP


def _draw_panel(sheet: Image.Image, panel: Panel, top: int, cell: tuple[int, int], header: int) -> None:
    pen = ImageDraw.Draw(sheet)
    if panel.title:
        title, letters = drawable(panel.title, 18)
        pen.text((MARGIN, top), title, INK, letters)
        top += 28
    for column, label in enumerate(panel.columns):
        lines, letters = wrapped(label, 14, cell[0])
        for number, line in enumerate(reversed(lines[:3])):
            at = (_left(column, cell) + cell[0] / 2, top + header - 8 - 16 * number)
            pen.text(at, line, INK, letters, anchor="ms")
    for row, label in enumerate(panel.rows):
        above = top + header + row * (cell[1] + GAP)
        _draw_words(pen, label, (MARGIN, above + 4), LABELS - 2 * GAP, INK)
        for column in range(len(panel.columns)):
            _draw_cell(sheet, panel.cells.get((row, column)), (_left(column, cell), above), cell)


def _draw_cell(
    sheet: Image.Image, content: Image.Image | str | None, at: tuple[int, int], cell: tuple[int, int]
) -> None:
    if isinstance(content, Image.Image):
        sheet.paste(content.convert("RGB").resize(cell, Image.Resampling.LANCZOS), at)
    elif content is not None:
        _draw_words(ImageDraw.Draw(sheet), content, at, cell[0], FAINT)


def _draw_words(pen: ImageDraw.ImageDraw, text: str, at: tuple[int, int], width: int, colour: str) -> None:
    lines, letters = wrapped(text, 14, width)
    for number, line in enumerate(lines[:6]):
        pen.text((at[0], at[1] + 18 * number), line, colour, letters)


def _left(column: int, cell: tuple[int, int]) -> int:
    return MARGIN + LABELS + column * (cell[0] + GAP)
