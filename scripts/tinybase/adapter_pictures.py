"""Draws the folders of pictures that the shipped adapters are trained on, for `lorry train`.

A style adapter sees three quarters of the concepts in its look; the rest stay unseen, so that a picture of one shows
style and not memory. The subject adapter learns two made-up words, with base pictures as the prior, to keep the rest
as it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from concepts import ALL, HELD_OUT_OF_STYLES
from dataset import SUBJECT_CONCEPTS, Sample, picture, samples
from drawing import Look

STYLES: Sequence[Look] = ("line", "pixel", "neon")


def write_folder(work: Path, folder: Path, chosen: Sequence[Sample]) -> None:
    """Write pictures with a `metadata.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, sample in enumerate(chosen):
        name = f"{number:05}.png"
        Image.fromarray(picture(work, sample)).save(folder / name)
        rows.append(json.dumps({"file_name": name, "text": sample.caption}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    print(f"{folder}: {len(rows)} pictures")


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--work", type=Path, required=True, help="where fetch.sh has put the icons")
    args.add_argument("--count", type=int, default=2000, help="pictures of each style")
    opts = args.parse_args()
    out = opts.work / "pictures"
    shown = [c for c in ALL if c.noun not in HELD_OUT_OF_STYLES]
    for look in STYLES:
        write_folder(opts.work, out / look, samples(opts.count, 300, (look,), shown))
    half = opts.count // 2
    write_folder(opts.work, out / "zuzu", samples(half, 301, ("base",), SUBJECT_CONCEPTS))
    write_folder(opts.work, out / "zuzu-prior", samples(half, 302, ("base",)))


if __name__ == "__main__":
    main()
