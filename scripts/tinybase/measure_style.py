"""Trains the adapter of docs/training.md five times, and measures whether things it never saw take the style.

The style is chalk on a board. Ten things are shown; the prompts name ten others. The distances are those of `style.py`
to true chalk drawings of the same things, for the base alone and with the adapter.

`--draw` makes the ten pictures of docs/training/pictures anew.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import lorry
from concepts import ALL
from dataset import Sample, picture, with_article
from lorry.assets import base_folder
from lorry.training import Settings, Silent, train
from style import drawn, picture_distance, spread, style_distance

SHOWN = ("banana", "dog", "rocket", "crown", "umbrella", "mushroom", "snail", "bus", "guitar", "tree")
HELD_OUT = ("apple", "cat", "castle", "key", "star", "pear", "car", "fish", "house", "penguin")
BOARD, CHALK = np.array([38, 70, 60]), np.array([240, 240, 225])
PICTURES = Path(__file__).parents[2] / "docs" / "training" / "pictures"
CONFIG = PICTURES.parent / "chalk.toml"


def chalk(work: Path, noun: str) -> Image.Image:
    """A thing in white strokes on a board: its line drawing in other colours."""
    concept = next(c for c in ALL if c.noun == noun)
    lines = picture(work, Sample(concept, "line", None, "white", noun, 0.92, (0.0, 0.0)))
    dark = 1 - lines.astype(np.float64).mean(-1, keepdims=True) / 255
    return Image.fromarray((BOARD + (CHALK - BOARD) * dark).round().astype(np.uint8))


def draw_shown(work: Path) -> None:
    """Write the ten pictures and their captions."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for noun in SHOWN:
        chalk(work, noun).save(PICTURES / f"{noun}.png")
        (PICTURES / f"{noun}.txt").write_text(f"{with_article(noun)}\n")


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--work", type=Path, required=True, help="where fetch.sh has put the icons")
    args.add_argument("--seeds", type=int, default=5)
    args.add_argument("--draw", action="store_true")
    opts = args.parse_args()
    torch.set_num_threads(1)
    if opts.draw:
        draw_shown(opts.work)
        return
    true = [chalk(opts.work, noun) for noun in HELD_OUT]
    settings = Settings.read(CONFIG)
    base: Any = lorry.attach(StableDiffusionPipeline.from_pretrained(base_folder()))
    prompts = [f"{settings.trigger}, {with_article(noun)}" for noun in HELD_OUT]
    before = drawn(base, prompts, seed=7)
    rows = []
    for seed in range(opts.seeds):
        with tempfile.TemporaryDirectory() as out:
            told = {"data": str(PICTURES), "out": out, "seed": seed, "sample_every": 0, "tensorboard": False}
            result = train(settings.changed(told), Silent())
            base.load_lora_weights(str(result.adapter), adapter_name="chalk")
        after = drawn(base, prompts, seed=7)
        base.unload_lora_weights()
        rows.append((style_distance(base.vae, after, true), picture_distance(after, true)))
        print(
            f"seed {seed}: style {rows[-1][0]:.3f}, picture {rows[-1][1]:.4f}, loss {result.loss:.4f}",
            flush=True,
        )
    shown = [chalk(opts.work, noun) for noun in SHOWN]
    print(
        f"base: style {style_distance(base.vae, before, true):.3f}, picture {picture_distance(before, true):.4f}"
    )
    print(f"with the adapter: style {spread(r[0] for r in rows)}, picture {spread(r[1] for r in rows)}")
    print(f"true chalk drawings of the ten things shown: style {style_distance(base.vae, shown, true):.3f}")


if __name__ == "__main__":
    main()
