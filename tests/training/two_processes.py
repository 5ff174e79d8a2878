"""A run in as many processes as accelerate was launched with: what the tests of two processes start."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parents[1]))

if __name__ == "__main__":
    from training.runs import Listening, run

    data, base, out, batch, *changes = sys.argv[1:]
    settings = json.loads("".join(changes) or "{}")
    listening = Listening()
    run(
        Path(data),
        Path(base),
        Path(out),
        listening,
        steps=3,
        batch=int(batch),
        caption_dropout=0.3,
        **settings,
    )
    sys.stderr.write("\n".join(listening.notes))
