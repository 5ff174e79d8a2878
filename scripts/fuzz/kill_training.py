"""Kill `lorry train` at random moments: `python -m scripts.fuzz.kill_training --kills 20`.

Runs on the shipped base are killed and sent on (`--resume`) until one ends; then the next begins. Each must end with
the bits of a run that nobody disturbed: its file, and the optimiser's state. Every other kill waits for a step first,
so that all runs come to an end.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PICTURES = Path(__file__).parents[2] / "docs" / "training" / "pictures"
OPTIONS = (
    "--name chalk --trigger chalk --targets attention --rank 4 --batch 2 --save-every 4 --no-tensorboard"
)


@dataclass(frozen=True)
class Run:
    """A run, and how long it takes when nobody disturbs it."""

    out: Path
    steps: int

    def start(self) -> subprocess.Popen[bytes]:
        """Begin, or go on."""
        begun = (self.out / "settings.toml").is_file()
        words = (
            ["--resume", str(self.out)]
            if begun
            else [str(PICTURES), *OPTIONS.split(), "--out", str(self.out)]
        )
        words += [] if begun else ["--steps", str(self.steps)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        nowhere = subprocess.DEVNULL
        return subprocess.Popen(
            [sys.executable, "-m", "lorry", "train", *words], env=env, stdout=nowhere, stderr=nowhere
        )

    @property
    def lines(self) -> int:
        """How many steps its table has."""
        table = self.out / "losses.csv"
        return table.read_bytes().count(b"\n") if table.is_file() else 0

    def contents(self) -> dict[str, bytes]:
        """What a run is compared by."""
        newest = self.out / "checkpoints" / f"step-{self.steps:08}"
        files = (self.out / "chalk.safetensors", newest / "adapter.safetensors", newest / "optimiser.pt")
        return {path.name: path.read_bytes() for path in files}


def killed(run: Run, rng: random.Random, seconds: float, *, wait: bool) -> bool:
    """Start a run and kill it after up to `seconds`, or let it end; return whether it was killed."""
    process, before, due = (
        run.start(),
        run.lines,
        None if wait else time.monotonic() + rng.uniform(0, 2 * seconds),
    )
    while process.poll() is None:
        if due is None and run.lines != before:
            due = time.monotonic() + rng.uniform(0, seconds)
        if due is not None and time.monotonic() > due:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    if process.returncode:
        raise AssertionError(f"{run.out}: `lorry train` ended with {process.returncode} by itself")
    return False


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--kills", type=int, default=20)
    args.add_argument("--steps", type=int, default=40)
    args.add_argument("--seconds", type=float, default=4.0, help="the longest that a step is waited for")
    args.add_argument("--seed", type=int, default=0)
    opts = args.parse_args()
    rng, kills, runs = random.Random(opts.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Run(Path(folder) / "run", opts.steps)
        whole.start().wait()
        expected = whole.contents()
        shutil.move(whole.out, Path(folder) / "whole")
        while kills < opts.kills:
            run, here = Run(whole.out, opts.steps), 0
            while killed(run, rng, opts.seconds, wait=here % 2 == 0):
                here += 1
            found = run.contents()
            for name, content in expected.items():
                if found[name] != content:
                    raise AssertionError(
                        f"{name} is not that of the undisturbed run after {here} kills (seed {opts.seed})"
                    )
            kills, runs = kills + here, runs + 1
            shutil.rmtree(run.out)
            print(f"{kills} kills, {runs} runs: all bits as undisturbed", flush=True)


if __name__ == "__main__":
    main()
