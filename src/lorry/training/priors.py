"""Pictures of the class that a subject belongs to, drawn by the base itself: what it is to stay able to draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lorry.training.order import generator_of
from lorry.training.preparing import Advance


@torch.no_grad()
def draw_priors(
    pipeline: Any,
    prompt: str,
    count: int,
    folder: Path,
    *,
    seed: int,
    steps: int,
    guidance: float,
    advance: Advance,
) -> Path:
    """Draw pictures by one prompt into a folder, each with its caption beside it; those that are there stay.

    Source: Ruiz et al., DreamBooth (arXiv:2208.12242), section 3.3.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pipeline.set_progress_bar_config(disable=True)
    for number in range(count):
        path = folder / f"{number:04}.png"
        if path.is_file():
            continue
        path.with_suffix(".txt").write_text(prompt, encoding="utf-8")
        noise = generator_of(seed, "prior", number)
        image = pipeline(prompt, generator=noise, num_inference_steps=steps, guidance_scale=guidance).images[
            0
        ]
        draft = path.with_name(f".{path.name}")
        image.save(draft, format="png")
        draft.replace(path)
        advance("prior pictures drawn", number + 1, count)
    return folder
