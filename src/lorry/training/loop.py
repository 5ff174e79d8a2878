"""The steps of a run, one after the other, until they are done or somebody asks to stop."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import final

from lorry.training.engine import Outcome
from lorry.training.outputs import Outputs
from lorry.training.processes import Process
from lorry.training.records import Records
from lorry.training.stopping import asked_to_stop
from lorry.training.watching import Progress, peak_memory


@final
@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended."""

    adapter: Path
    """The file, of the state at `step`."""
    step: int
    loss: float
    """The average of the last steps, over all processes."""
    finished: bool
    """False when it was asked to stop."""


def run_steps(outputs: Outputs, done: int) -> Result:
    """Do the steps after step `done`; draw, save and tell in the main process.

    Where there are none left the files are written anew: the run may have ended before they were, or is to be called
    or spelled otherwise.
    """
    process = outputs.process
    s = process.settings
    records = Records(process.out, done) if process.is_main else None
    draws = bool(s.sample_every) and (process.is_main or process.is_sharded)
    first, seconds, stop = done, 0.0, False
    if draws and done == 0:
        outputs.sample(0)
    if records is not None and done >= s.steps:
        outputs.save(done, records)
    with asked_to_stop() as asked:
        while done < s.steps and not stop:
            began = time.perf_counter()
            outcome = outputs.engine.step(done, bool(asked))
            seconds += time.perf_counter() - began
            done, stop = done + 1, outcome.stop
            if records is not None:
                records.add(done, outcome.loss, outcome.rate)
                _tell(process, done, outcome, records.average, (done - first) / seconds)
            if draws and (done % s.sample_every == 0 or done == s.steps):
                outputs.sample(done)
            if records is not None and (done % s.save_every == 0 or done == s.steps or stop):
                outputs.save(done, records)
    process.wait()
    average = process.of_main(math.nan if records is None else records.average)
    process.accelerator.end_training()
    process.watcher.ended(outputs.adapter, done, average, finished=done >= s.steps)
    return Result(outputs.adapter, done, average, done >= s.steps)


def _tell(process: Process, done: int, outcome: Outcome, average: float, speed: float) -> None:
    memory, steps = peak_memory(process.device), process.settings.steps
    process.watcher.step(Progress(done, steps, outcome.loss, average, outcome.rate, speed, memory))
    process.accelerator.log({"loss": outcome.loss, "rate": outcome.rate}, step=done)
