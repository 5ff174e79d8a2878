"""Compares adapters of the same names from several folders, on things that they were not shown.

A style adapter (line, pixel, neon) draws the things of `HELD_OUT_OF_STYLES`; the subject adapter (zuzu) draws its two
things on six backgrounds, and then every eighth thing of the base, which it should leave alone. Each is held against
the true drawings, with the base alone beside it. The distances are those of `style.py`, over several seeds of noise.

    python compare_adapters.py --work WORK SHIPPED=../../src/lorry/assets/loras NEW=WORK/runs
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import lorry
from concepts import ALL, HELD_OUT_OF_STYLES, Concept
from dataset import SUBJECT_CONCEPTS, Sample, picture, with_article
from drawing import Look
from lorry.assets import base_folder
from style import drawn, picture_distance, spread, style_distance


@dataclass(frozen=True)
class Test:
    """What an adapter is to draw."""

    adapter: str
    what: str
    look: Look
    things: Sequence[tuple[Concept, str]]
    """Concepts and the words for their backgrounds."""

    @property
    def prompts(self) -> list[str]:
        ends = (
            "" if ground == "white" else f" on {with_article(ground)} background" for _, ground in self.things
        )
        return [with_article(c.noun) + end for (c, _), end in zip(self.things, ends, strict=True)]

    def true(self, work: Path) -> list[Image.Image]:
        """The drawings that it should come to."""
        samples = (Sample(c, self.look, None, ground, "", 0.92, (0.0, 0.0)) for c, ground in self.things)
        return [Image.fromarray(picture(work, sample)) for sample in samples]


GROUNDS = ("white", "blue", "yellow", "pink", "green", "black")
UNSEEN = [(c, "white") for c in ALL if c.noun in HELD_OUT_OF_STYLES]
TESTS = (
    Test("line", "unseen things", "line", UNSEEN),
    Test("pixel", "unseen things", "pixel", UNSEEN),
    Test("neon", "unseen things", "neon", UNSEEN),
    Test("zuzu", "its two things", "base", [(c, g) for c in SUBJECT_CONCEPTS for g in GROUNDS]),
    Test("zuzu", "other things", "base", [(c, "white") for c in ALL[::8]]),
)


def compare(test: Test, files: dict[str, Path], work: Path, seeds: int) -> None:
    """Print a line of the table for the base, and for each of the files."""
    pipeline: Any = lorry.attach(StableDiffusionPipeline.from_pretrained(base_folder()))
    true = test.true(work)
    for whose, file in ({"base alone": None} | files).items():
        if file is not None:
            pipeline.load_lora_weights(str(file), adapter_name="it")
        ours = [drawn(pipeline, test.prompts, seed) for seed in range(seeds)]
        pipeline.unload_lora_weights()
        style = spread(style_distance(pipeline.vae, images, true) for images in ours)
        pixels = spread(picture_distance(images, true) for images in ours)
        print(f"| {test.adapter}, {test.what} | {whose} | {style} | {pixels} |", flush=True)


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument(
        "folders", nargs="+", help="NAME=FOLDER, with NAME.safetensors or NAME/NAME.safetensors in it"
    )
    args.add_argument("--work", type=Path, required=True, help="where fetch.sh has put the icons")
    args.add_argument("--only", default="", help="adapters, separated by commas; all of them by default")
    args.add_argument("--seeds", type=int, default=5)
    opts = args.parse_args()
    torch.set_num_threads(1)
    print("| adapter | whose | style distance | squared difference |\n|---|---|---|---|")
    for test in TESTS:
        if not opts.only or test.adapter in opts.only.split(","):
            files = {}
            for whose, _, folder in (given.partition("=") for given in opts.folders):
                name = f"{test.adapter}.safetensors"
                flat = Path(folder) / name
                files[whose] = flat if flat.is_file() else Path(folder) / test.adapter / name
            compare(test, files, opts.work, opts.seeds)


if __name__ == "__main__":
    main()
