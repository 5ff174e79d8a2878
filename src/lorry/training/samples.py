"""Pictures drawn while training, and the contact sheet that grows by a row of them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image, ImageDraw

from lorry.letters import drawable

FOLDER: Final = "samples"
SHEET: Final = "samples.png"
_NAME: Final = re.compile(r"step-(\d+)-(\d+)\.png")
_GAP: Final = 8


@torch.no_grad()
def draw_samples(
    pipeline: Any,
    prompts: Sequence[str],
    out: Path | None,
    step: int,
    *,
    steps: int,
    guidance: float,
    resolution: int,
) -> Path | None:
    """Draw each prompt as the adapter is now, always from the same noise, and make the sheet anew.

    Args:
        pipeline: with the adapter active.
        prompts: a column each.
        out: the folder of the run; None writes nothing.
        step: how many steps are done: the row's name.
        steps: of denoising.
        guidance: how closely to follow the prompts.
        resolution: the pictures' side.

    Returns:
        The sheet, where it was written.
    """
    wanted = {
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "width": resolution,
        "height": resolution,
        "output_type": "pil",
    }
    known = inspect.signature(pipeline.__call__).parameters
    arguments = {name: value for name, value in wanted.items() if name in known}
    pipeline.set_progress_bar_config(disable=True)
    for column, prompt in enumerate(prompts):
        noise = torch.Generator("cpu").manual_seed(column)
        image = pipeline(prompt, generator=noise, **arguments).images[0]
        if out is not None:
            (out / FOLDER).mkdir(exist_ok=True)
            image.save(out / FOLDER / f"step-{step:08}-{column}.png")
    return None if out is None else make_sheet(out, prompts)


def make_sheet(out: Path, prompts: Sequence[str]) -> Path:
    """Put all pictures that were drawn so far on one sheet: a row for each step, a column for each prompt."""
    pictures: dict[int, dict[int, Image.Image]] = {}
    for path in sorted((out / FOLDER).glob("step-*.png")):
        if match := _NAME.fullmatch(path.name):
            with Image.open(path) as image:
                pictures.setdefault(int(match[1]), {})[int(match[2])] = image.convert("RGB")
    side = max(128, *(image.width for row in pictures.values() for image in row.values()), 0)
    left, top = 70, 24
    columns = max((max(row) + 1 for row in pictures.values()), default=0)
    cell = side + _GAP
    sheet = Image.new("RGB", (left + columns * cell, top + len(pictures) * cell), "white")
    pen = ImageDraw.Draw(sheet)
    for column, prompt in enumerate(prompts[:columns]):
        text, letters = drawable(prompt, 13)
        shown = _shortened(pen, text, letters, side)
        pen.text((left + column * cell, 4), shown, fill="black", font=letters)
    for row, (step, found) in enumerate(sorted(pictures.items())):
        number, letters = drawable(f"{step:,}", 13)
        pen.text((6, top + row * cell + side // 2 - 8), number, fill="black", font=letters)
        for column, image in found.items():
            enlarged = image.resize((side, side * image.height // image.width))
            sheet.paste(enlarged, (left + column * cell, top + row * cell))
    draft = out / f".{SHEET}"
    sheet.save(draft, format="png")
    return draft.replace(out / SHEET)


def _shortened(pen: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> str:
    while text and pen.textlength(text, font=font) > width:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    return text
