"""Contact sheets for the eye: one picture a prompt, with the prompt below it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw

from concepts import ALL
from dataset import with_article
from models import load

COLOUR_PROMPTS = (
    "a red apple",
    "a green apple",
    "a red apple on a blue background",
    "a blue car",
    "a purple car on a yellow background",
    "a yellow umbrella on a purple background",
    "a green butterfly on a pink background",
    "a pink house on a green background",
    "a blue rocket on a black background",
    "a cat on a blue background",
    "a fox on a green background",
    "a ghost on a black background",
    "a red mushroom",
    "a blue mushroom on a gray background",
    "an orange fish on a blue background",
    "a purple octopus on a yellow background",
    "a panda on a red background",
    "a donut on a pink background",
    "a yellow star on a black background",
    "a green dinosaur on an orange background",
    "a photo of a cute cat",
    "cat",
    "rocket on a purple background",
    "an icon of a pineapple on a pink background",
)


def draw(
    pipe: StableDiffusionPipeline,
    prompts: Sequence[str],
    steps: int = 20,
    guidance: float = 3.0,
    seed: int = 0,
) -> list[Image.Image]:
    """Each prompt with its own generator, so that a picture does not depend on its neighbours."""
    made: list[Image.Image] = []
    for i in range(0, len(prompts), 24):
        part = list(prompts[i : i + 24])
        generators = [torch.Generator().manual_seed(seed) for _ in part]
        made += pipe(part, num_inference_steps=steps, guidance_scale=guidance, generator=generators).images
    return made


def sheet(
    pictures: Sequence[Image.Image], labels: Sequence[str], columns: int = 12, px: int = 96
) -> Image.Image:
    """Pictures in rows, each over its label."""
    rows = -(-len(pictures) // columns)
    paper = Image.new("RGB", (columns * (px + 4), rows * (px + 16)), "white")
    pen = ImageDraw.Draw(paper)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = i % columns * (px + 4), i // columns * (px + 16)
        paper.paste(picture.resize((px, px), Image.Resampling.LANCZOS), (x, y))
        pen.text((x + 1, y + px + 1), label[-17:], fill="black")
    return paper


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--model", type=Path, required=True)
    args.add_argument("--out", type=Path, required=True, help="a PNG file")
    args.add_argument("--steps", type=int, default=20)
    args.add_argument("--guidance", type=float, default=3.0)
    args.add_argument("--seed", type=int, default=0)
    opts = args.parse_args()
    torch.set_num_threads(1)
    prompts = [with_article(c.noun) for c in ALL] + list(COLOUR_PROMPTS)
    made = draw(load(opts.model), prompts, opts.steps, opts.guidance, opts.seed)
    labels = [p.replace("a photo of ", "").replace(" background", "").removeprefix("a ") for p in prompts]
    sheet(made, labels).save(opts.out)


if __name__ == "__main__":
    main()
