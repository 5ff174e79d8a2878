"""A run in as many processes as accelerate was launched with: what the test of two processes starts."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parents[1]))

if __name__ == "__main__":
    from training.runs import run

    data, base, out, batch = sys.argv[1:]
    run(Path(data), Path(base), Path(out), steps=3, batch=int(batch), caption_dropout=0.3)
