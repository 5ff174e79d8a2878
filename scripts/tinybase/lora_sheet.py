"""Contact sheets of the adapters: rows of strengths, columns of prompts, and one row of two adapters mixed.

Reads the files with diffusers' own loader, so that a sheet also shows that each file loads there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

from models import load
from sheet import draw, sheet

UNSEEN = (
    "a red apple",
    "a balloon",
    "a crab on a yellow background",
    "a dog",
    "a green guitar",
    "a mushroom on a blue background",
    "a rocket on a purple background",
    "a skull",
    "a sunflower",
    "a tree",
    "a turtle on a pink background",
    "a watermelon",
)
"""Things of `HELD_OUT_OF_STYLES`: no style adapter was shown them."""

SUBJECT = (
    "a zuzu",
    "a picture of a zuzu",
    "a zuzu on a blue background",
    "a zuzu on a pink background",
    "a krok",
    "a picture of a krok",
    "a krok on a yellow background",
    "a krok on a black background",
    "a red apple",
    "a car",
    "an octopus on a pink background",
    "a cat",
)


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--model", type=Path, required=True)
    args.add_argument("--loras", type=Path, required=True)
    args.add_argument("--only", default="", help="names, separated by commas")
    args.add_argument("--mix", default="", help="pairs such as line+neon, separated by commas")
    args.add_argument("--out", type=Path, required=True, help="a PNG file")
    opts = args.parse_args()
    torch.set_num_threads(1)
    pictures: list[Image.Image] = []
    labels: list[str] = []

    def row(names: list[str], strengths: list[float], prompts: tuple[str, ...]) -> None:
        pipe = load(opts.model)
        for name in names:
            pipe.load_lora_weights(str(opts.loras / f"{name}.safetensors"), adapter_name=name)
        if names:
            pipe.set_adapters(names, strengths)
        pictures.extend(draw(pipe, prompts))
        head = "+".join(f"{n[:5]} {s:g}" for n, s in zip(names, strengths, strict=True))
        labels.extend([f"{head} {p.removeprefix('a ')}"[:17] for p in prompts])

    row([], [], UNSEEN)
    names = opts.only.split(",") if opts.only else sorted(p.stem for p in opts.loras.glob("*.safetensors"))
    for name in names:
        prompts = SUBJECT if name == "zuzu" else UNSEEN
        for strength in (0.5, 1.0):
            row([name], [strength], prompts)
    for pair in filter(None, opts.mix.split(",")):
        both = pair.split("+")
        row(both, [0.6] * len(both), SUBJECT if "zuzu" in both else UNSEEN)
    sheet(pictures, labels).save(opts.out)


if __name__ == "__main__":
    main()
