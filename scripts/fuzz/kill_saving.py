"""Kill a process that saves, at random moments: `python -m scripts.fuzz.kill_saving --kills 200`.

A child overwrites one adapter file again and again, with two contents in turn, until it is killed. After each kill the
file must be one of the two, whole. What is printed tells how many children were killed with a draft beside the file,
which is to say in the middle of writing.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from lorry import LoraLoaderMixin

NAME = "pytorch_lora_weights.safetensors"
NUMBERS = 2_000_000
"""In each file: 8 MB, so that writing takes longer than the rest."""


def save(folder: Path, value: float) -> None:
    layers = {
        "to_q.lora_A.weight": torch.full((4, NUMBERS // 4), value),
        "to_q.lora_B.weight": torch.zeros(4, 4),
    }
    LoraLoaderMixin.save_lora_weights(folder, unet_lora_layers=layers)


def kill(folder: Path, after: float) -> None:
    child = os.fork()
    if child == 0:
        while True:
            save(folder, 1.0)
            save(folder, 2.0)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def run(kills: int, folder: Path, seed: int) -> int:
    torch.set_num_threads(1)  # a forked process has no thread pool
    whole = set()
    for value in (1.0, 2.0):
        save(folder, value)
        whole.add((folder / NAME).read_bytes())
    chance = random.Random(seed)
    broken = drafts = 0
    for _ in range(kills):
        kill(folder, chance.uniform(0.0, 0.03))
        broken += (folder / NAME).read_bytes() not in whole
        left = list(folder.glob(f".{NAME}.*.tmp"))
        drafts += bool(left)
        for path in left:
            path.unlink()
    print(f"{kills} kills, {broken} broken files; {drafts} kills came in the middle of writing")
    return 1 if broken or not drafts else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        sys.exit(run(given.kills, given.folder or Path(made), given.seed))
