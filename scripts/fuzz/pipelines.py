"""Drive whole pipelines through random sequences: `python -m scripts.fuzz.pipelines --sequences 1000`.

The machine is that of `tests/pipelines/machine.py`, which CI runs for a few dozen sequences; here it runs for as many
as asked for of each kind of pipeline in each dtype. A sequence that fails is printed with its seed, by which
`--first SEED --sequences 1` does it again. What is printed at the end of each kind tells how many operations were done,
in what time, and how many tensors there are that were not there after the first ten sequences.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from pipelines.machine import Clean, files_of, run_sequence

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
WARM = 10
"""Sequences after which everything that is made once is there."""


def tensor_count() -> int:
    files_of.cache_clear()
    Clean.idle.clear()
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def run(kind: str, dtype: str, seeds: range, steps: int) -> int:
    count: Counter[str] = Counter()
    start, before = time.monotonic(), 0
    for number, seed in enumerate(seeds):
        if number == WARM:
            before = tensor_count()
        try:
            count += run_sequence(kind, DTYPES[dtype], seed, steps)
        except Exception:  # noqa: BLE001
            count["sequences that failed"] += 1
            traceback.print_exc()
    left = f"{tensor_count() - before} tensors left" if len(seeds) > WARM else "tensors not counted"
    listed = ", ".join(f"{number} {what}" for what, number in sorted(count.items()))
    taken = time.monotonic() - start
    print(f"{kind}, {dtype}: {len(seeds)} sequences, operations: {listed}; {left}; {taken:.0f} s", flush=True)
    return count["sequences that failed"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=1000, help="of each kind in each dtype")
    parser.add_argument("--steps", type=int, default=15, help="in each")
    parser.add_argument("--kinds", nargs="+", default=["sd", "sdxl", "flux", "wan"])
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES))
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chosen = range(given.first, given.first + given.sequences)
    sys.exit(sum(run(kind, dtype, chosen, given.steps) for kind in given.kinds for dtype in given.dtypes))
