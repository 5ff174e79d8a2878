"""Kill `lorry train` at random moments: `python -m scripts.fuzz.kill_training --kills 20`.

Runs on the shipped base are killed and sent on (`--resume`) until one ends; then the next begins. Each must end with
the bits of a run that nobody disturbed: its file, and the optimiser's state. Every other kill comes while a process
starts, the others some steps after its first one, so that all runs come to an end. After the last kill the run that it
hit is left to end.
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lorry.training.checkpoints import find_checkpoint

PICTURES = Path(__file__).parents[2] / "docs" / "training" / "pictures"
SAVE_EVERY = 4
LONGEST = 600.0
"""Seconds that an undisturbed run may take; those that are sent on may take ten times what that one took."""
OPTIONS = (
    f"--name chalk --trigger chalk --targets attention --rank 4 --batch 2 --save-every {SAVE_EVERY} "
    "--no-tensorboard"
)


@dataclass(frozen=True)
class Run:
    """A run, and the folder that it writes into."""

    out: Path
    steps: int

    def start(self) -> subprocess.Popen[bytes]:
        """Begin, or go on."""
        begun = (self.out / "settings.toml").is_file()
        words = (
            ["--resume", str(self.out)]
            if begun
            else [str(PICTURES), *OPTIONS.split(), "--out", str(self.out), "--steps", str(self.steps)]
        )
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        nowhere = subprocess.DEVNULL
        return subprocess.Popen(
            [sys.executable, "-m", "lorry", "train", *words], env=env, stdout=nowhere, stderr=nowhere
        )

    @property
    def saved(self) -> int:
        """The step of the newest checkpoint."""
        checkpoint = find_checkpoint(self.out)
        return 0 if checkpoint is None else checkpoint.step

    def steps_since(self, moment: int) -> int | None:
        """How many steps its table has, or None while no process has opened it since `moment`."""
        table = self.out / "losses.csv"
        if not table.is_file() or table.stat().st_mtime_ns < moment:
            return None
        return table.read_bytes().count(b"\n") - 1

    def contents(self) -> dict[str, bytes]:
        """What a run is compared by."""
        newest = self.out / "checkpoints" / f"step-{self.steps:08}"
        files = (self.out / "chalk.safetensors", newest / "adapter.safetensors", newest / "optimiser.pt")
        return {path.name: path.read_bytes() for path in files}


@dataclass(frozen=True)
class Pace:
    """How fast an undisturbed run is, in seconds."""

    first_step: float
    """From its start to its first step."""
    whole: float
    step: float


def undisturbed(run: Run) -> Pace:
    """Do a run from beginning to end, and watch its pace."""
    began, moment = time.monotonic(), time.time_ns()
    process = run.start()
    ends(process, LONGEST, lambda: bool(run.steps_since(moment)))
    first = time.monotonic() - began
    ends(process, LONGEST)
    whole = time.monotonic() - began
    return Pace(first, whole, (whole - first) / run.steps)


def killed(run: Run, rng: random.Random, pace: Pace, *, starting: bool) -> bool:
    """Start a process of a run and kill it; return False where it ended before that.

    Args:
        run: to begin, or to go on with.
        rng: says when.
        pace: of an undisturbed run.
        starting: kill while it starts; otherwise some steps after its first one, at any moment of a step.
    """
    late = rng.uniform(0, pace.first_step if starting else 2 * pace.step)
    goal = run.saved + rng.randint(1, 2 * SAVE_EVERY)
    moment = time.time_ns()
    process = run.start()
    if ends(process, 10 * pace.whole, lambda: starting or (run.steps_since(moment) or 0) >= goal):
        return False
    time.sleep(late)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def ends(process: subprocess.Popen[bytes], limit: float, is_due: Callable[[], bool] = lambda: False) -> bool:
    """Wait until a process ends, or something is due, and return whether it has ended.

    Raises:
        AssertionError: it ended with an error, or took more seconds than `limit`.
    """
    last = time.monotonic() + limit
    while process.poll() is None:
        if is_due():
            return False
        if time.monotonic() > last:
            process.kill()
            raise AssertionError(f"`lorry train` has not ended after {limit:.0f} s")
        time.sleep(0.002)
    if process.returncode:
        raise AssertionError(f"`lorry train` ended with {process.returncode} by itself")
    return True


def check_same(run: Run, expected: dict[str, bytes], kills: int, seed: int) -> None:
    """Raise where a run did not come to what the undisturbed one did."""
    found = run.contents()
    for name, content in expected.items():
        if found[name] != content:
            raise AssertionError(
                f"{name} is not that of the undisturbed run after {kills} kills (seed {seed})"
            )


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--kills", type=int, default=20)
    args.add_argument("--steps", type=int, default=40)
    args.add_argument("--seed", type=int, default=0)
    opts = args.parse_args()
    rng, began = random.Random(opts.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run", opts.steps)
        pace = undisturbed(run)
        print(
            f"undisturbed: {pace.whole:.1f} s, {pace.first_step:.1f} of them before the first step",
            flush=True,
        )
        expected = run.contents()
        kills = runs = 0
        while kills < opts.kills:
            shutil.rmtree(run.out)
            here, ended = 0, False
            while not ended:
                if kills == opts.kills:
                    ended = ends(run.start(), 10 * pace.whole)
                elif killed(run, rng, pace, starting=here % 2 == 1):
                    kills, here = kills + 1, here + 1
                    told = f"kill {kills}, run {runs + 1}: step {run.saved} is saved"
                    print(f"{time.monotonic() - began:4.0f} s  {told}", flush=True)
                else:
                    ended = True
            check_same(run, expected, here, opts.seed)
            runs += 1
            print(f"{kills} kills, {runs} runs: all bits as undisturbed", flush=True)


if __name__ == "__main__":
    main()
