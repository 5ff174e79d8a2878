"""Trains the adapter of docs/training.md five times, and measures whether things it never saw take the style.

The style is chalk on a board. Ten things are shown; the prompts name ten others. Two numbers, each for the base alone
and with the adapter:

- style: the diagonal Fréchet distance between the shipped autoencoder's features of the drawn pictures and of true
  chalk drawings of the same things (features: each latent channel's mean and deviation over places);
- picture: the mean squared difference, pixel by pixel, to the true chalk drawing of the same thing (pixels 0 to 1).

`--draw` makes the ten pictures of docs/training/pictures anew.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

import lorry
from concepts import ALL
from dataset import Sample, picture
from lorry.assets import base_folder
from lorry.training import Settings, Silent, train

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
        (PICTURES / f"{noun}.txt").write_text(f"{article(noun)}\n")


def article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


@torch.no_grad()
def drawn(pipeline: Any, nouns: Sequence[str], trigger: str) -> list[Image.Image]:
    """One picture of each noun, from the same noise."""
    pipeline.set_progress_bar_config(disable=True)
    return [
        pipeline(
            f"{trigger}, {article(noun)}",
            num_inference_steps=20,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(7),
        ).images[0]
        for noun in nouns
    ]


@torch.no_grad()
def features(vae: Any, images: Sequence[Image.Image]) -> Tensor:
    """(pictures, 2 * channels)."""
    pixels = torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) / 127.5 - 1 for i in images])
    latents = vae.encode(pixels.float()).latents.flatten(2)
    return torch.cat([latents.mean(2), latents.std(2)], 1)


def style_distance(vae: Any, ours: Sequence[Image.Image], true: Sequence[Image.Image]) -> float:
    one, other = features(vae, ours), features(vae, true)
    return float((one.mean(0) - other.mean(0)).square().sum() + (one.std(0) - other.std(0)).square().sum())


def picture_distance(ours: Sequence[Image.Image], true: Sequence[Image.Image]) -> float:
    return float(
        np.mean(
            [
                ((np.array(a) / 255.0 - np.array(b) / 255.0) ** 2).mean()
                for a, b in zip(ours, true, strict=True)
            ]
        )
    )


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
    before = drawn(base, HELD_OUT, settings.trigger)
    rows = []
    for seed in range(opts.seeds):
        with tempfile.TemporaryDirectory() as out:
            told = {"data": str(PICTURES), "out": out, "seed": seed, "sample_every": 0, "tensorboard": False}
            result = train(settings.changed(told), Silent())
            base.load_lora_weights(str(result.adapter), adapter_name="chalk")
        after = drawn(base, HELD_OUT, settings.trigger)
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
    print(f"with the adapter: style {_spread(r[0] for r in rows)}, picture {_spread(r[1] for r in rows)}")
    print(f"true chalk drawings of the ten things shown: style {style_distance(base.vae, shown, true):.3f}")


def _spread(values: Any) -> str:
    found = list(values)
    return f"{mean(found):.4f} (deviation {stdev(found):.4f}, worst {max(found):.4f})"


if __name__ == "__main__":
    main()
