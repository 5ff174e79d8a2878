"""A labelled contact sheet: what was done on the left, what was asked for on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lorry.cli.demo.story import Check, Row, Section
from lorry.cli.grid import FAINT, INK, PAPER
from lorry.letters import drawable, wrapped

ENLARGED: Final = 2
GAP: Final = 8
MARGIN: Final = 28
LABELS: Final = 250
"""The width of the column of labels."""
HEADER: Final = 52
"""The height of a section's line of prompts."""
GREEN, RED = "#1e7d3c", "#c0271d"


def as_image(pixels: Tensor) -> Image.Image:
    """Return one picture of `Pictures.pixels`, (3, height, width) from 0 to 1."""
    array = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)


def draw_sheet(title: str, subtitle: str, sections: Sequence[Section]) -> Image.Image:
    """Return the sheet of all sections, one below the other."""
    cell = _cell(sections)
    columns = max(len(section.prompts) for section in sections)
    width = 2 * MARGIN + LABELS + columns * (cell[0] + GAP)
    heights = [HEADER + len(section.rows) * (cell[1] + GAP) + MARGIN for section in sections]
    sheet = Image.new("RGB", (width, 2 * MARGIN + 56 + sum(heights)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for text, colour, size, above in ((title, INK, 30, -6), (subtitle, FAINT, 14, 34)):
        text, letters = drawable(text, size)
        pen.text((MARGIN, MARGIN + above), text, colour, letters)
    top = MARGIN + 72
    for section, height in zip(sections, heights, strict=True):
        _draw_section(sheet, section, top, cell)
        top += height
    return sheet


def _cell(sections: Sequence[Section]) -> tuple[int, int]:
    height, width = sections[0].rows[0].pictures.pixels.shape[-2:]
    return width * ENLARGED, height * ENLARGED


def _draw_section(sheet: Image.Image, section: Section, top: int, cell: tuple[int, int]) -> None:
    pen = ImageDraw.Draw(sheet)
    for column, prompt in enumerate(section.prompts):
        lines, letters = wrapped(prompt, 14, cell[0])
        bottom = top + HEADER - 6
        for number, line in enumerate(reversed(lines[:3])):
            at = (_left(column, cell) + cell[0] / 2, bottom - 16 * number)
            pen.text(at, line, INK, letters, anchor="ms")
    for number, row in enumerate(section.rows):
        _draw_row(sheet, row, top + HEADER + number * (cell[1] + GAP), cell)


def _draw_row(sheet: Image.Image, row: Row, top: int, cell: tuple[int, int]) -> None:
    _draw_label(ImageDraw.Draw(sheet), row, top)
    for column, pixels in enumerate(row.pictures.pixels):
        picture = as_image(pixels).resize(cell, Image.Resampling.LANCZOS)
        sheet.paste(picture, (_left(column, cell), top))


def _draw_label(pen: ImageDraw.ImageDraw, row: Row, top: int) -> None:
    width = LABELS - 2 * GAP
    at = top + 4
    for text, colour, size in ((row.title, INK, 20), (row.note, FAINT, 14), _checked(row.check)):
        for part in text.splitlines():
            lines, letters = wrapped(part, size, width)
            for line in lines:
                pen.text((MARGIN, at), line, colour, letters)
                at += round(size * 1.25)
        at += 3


def _checked(check: Check | None) -> tuple[str, str, int]:
    return ("", FAINT, 14) if check is None else (str(check), GREEN if check.kept else RED, 14)


def _left(column: int, cell: tuple[int, int]) -> int:
    return MARGIN + LABELS + column * (cell[0] + GAP)
