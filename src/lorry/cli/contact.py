"""The contact sheet of a library: what each adapter does to one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lorry.cli.console import tell_error
from lorry.cli.drawing import SHIPPED, SHIPPED_GUIDANCE, SHIPPED_STEPS, load_lora, load_pipeline, quiet
from lorry.cli.grid import Panel, draw_grid
from lorry.cli.options import LoraChoice
from lorry.cli.pictures import kind_of, make_room, write_picture
from lorry.cli.progress import bar
from lorry.errors import BindingError, LorryError
from lorry.workflows.library import LibraryEntry

COLUMNS = 6
WORDS = "{words}"
"""Stands in a prompt for the words that call what an adapter teaches."""


def draw_contact_sheet(entries: Sequence[LibraryEntry], out: Path, prompt: str, base: str, seed: int) -> int:
    """Draw one prompt with each adapter, and without any, all from the same noise; write one labelled picture.

    An adapter that does not fit the base model has words in its place; the reason is printed.

    Args:
        entries: the adapters. One is loaded at a time.
        out: where the picture goes.
        prompt: what to draw; `{words}` in it stands for each adapter's own words.
        base: of the pictures, as `lorry generate --base` takes it.
        seed: of the noise.

    Returns:
        How many adapters fit.

    Raises:
        FileError: the base model cannot be had or read, or the picture cannot be written.
    """
    kind_of(out)
    make_room([out])
    pipeline = load_pipeline(base).pipeline
    labels = ["no adapter"]
    cells: list[Image.Image | str] = [_draw(pipeline, prompt.replace(WORDS, ""), base, seed)]
    for entry in bar(entries, "drawing"):
        labels.append(entry.name)
        cells.append(_with_adapter(pipeline, entry, prompt, base, seed))
    panels = [
        Panel(
            prompt if start == 0 else "",
            labels[start : start + COLUMNS],
            [f"{base}, seed {seed}" if start == 0 else ""],
            {(0, column): cell for column, cell in enumerate(cells[start : start + COLUMNS])},
        )
        for start in range(0, len(labels), COLUMNS)
    ]
    write_picture(draw_grid(panels), out)
    return sum(isinstance(cell, Image.Image) for cell in cells[1:])


def _with_adapter(pipeline: Any, entry: LibraryEntry, prompt: str, base: str, seed: int) -> Image.Image | str:
    try:
        load_lora(pipeline, LoraChoice(entry.path), "shown")
    except LorryError as error:
        tell_error(error)
        return "does not fit this base model" if isinstance(error, BindingError) else "cannot be read"
    try:
        pipeline.set_adapters("shown", entry.beside.strength or 1.0)
        return _draw(pipeline, prompt.replace(WORDS, ", ".join(entry.words)), base, seed)
    finally:
        pipeline.unload_lora_weights()


def _draw(pipeline: Any, prompt: str, base: str, seed: int) -> Image.Image:
    usual = (
        {"num_inference_steps": SHIPPED_STEPS, "guidance_scale": SHIPPED_GUIDANCE} if base == SHIPPED else {}
    )
    with quiet():
        return pipeline(prompt, generator=torch.Generator("cpu").manual_seed(seed), **usual).images[0]
