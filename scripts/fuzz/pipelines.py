"""Drive whole pipelines through random sequences: `python -m scripts.fuzz.pipelines --sequences 1000`.

The machine is that of `tests/pipelines/machine.py`, which CI runs for a few dozen sequences; here it runs for as many
as asked for of each kind of pipeline in each dtype. A sequence that fails is made as short as hypothesis can, and
printed. What is printed at the end of each kind tells how many operations were done, in what time, and how many tensors
there are that were not there after the first sequences.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import hypothesis
import torch
from hypothesis.stateful import run_state_machine_as_test

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from lorry.files._layout import _read_once
from pipelines.clean import Clean, files_of
from pipelines.machine import machine_of, settings_for

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
WARM = 10
"""Sequences after which everything that is made once is there."""


def tensor_count() -> int:
    files_of.cache_clear()
    _read_once.cache_clear()  # with a layout goes the form of its adapter, which has tensors without numbers
    Clean.idle.clear()
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def run(kind: Any, dtype: str, sequences: int, steps: int, seed: int) -> bool:
    machine, start, passed = hypothesis.seed(seed)(machine_of(kind, DTYPES[dtype])), time.monotonic(), True
    before = 0
    for number in (WARM, sequences - WARM):
        before = tensor_count()
        try:
            run_state_machine_as_test(machine, settings=settings_for(number, steps))
        except Exception:  # noqa: BLE001
            passed = False
            traceback.print_exc()
    listed = ", ".join(f"{number} {what}" for what, number in sorted(machine.count.items()))
    taken = time.monotonic() - start
    left = tensor_count() - before
    print(f"{kind}, {dtype}, seed {seed}: {listed}; {left} tensors left; {taken:.0f} s", flush=True)
    return passed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=1000, help="of each kind in each dtype")
    parser.add_argument("--steps", type=int, default=15, help="at most, in each")
    parser.add_argument("--kinds", nargs="+", default=["sd", "sdxl", "flux", "wan"])
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.sequences <= WARM:
        parser.error(f"--sequences: expected more than {WARM}, after which tensors are counted")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    hypothesis.settings.register_profile("random", derandomize=False)
    hypothesis.settings.load_profile("random")
    ways = [(kind, dtype) for kind in given.kinds for dtype in given.dtypes]
    passed = [run(*way, given.sequences, given.steps, given.seed) for way in ways]
    sys.exit(not all(passed))
