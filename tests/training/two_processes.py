"""`lorry train` in as many processes as accelerate was launched with: what the tests of two processes start."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parents[1]))

if __name__ == "__main__":
    from lorry.cli.training import train_and_tell
    from training.runs import SMALL

    data, base, out, batch, *changes = sys.argv[1:]
    settings = {"data": data, "base": base, "out": out, **SMALL, "steps": 3, "batch": int(batch)}
    train_and_tell({**settings, "caption_dropout": 0.3, **json.loads("".join(changes) or "{}")}, None, None)
