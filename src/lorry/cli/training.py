"""`lorry train`: a run, and what is shown while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from rich.progress import BarColumn, Progress, TextColumn

from lorry.binding import size_of
from lorry.cli.console import console, tell
from lorry.errors import CheckpointError
from lorry.training.folder import SETTINGS
from lorry.training.loop import Result
from lorry.training.run import train
from lorry.training.settings import Settings
from lorry.training.watching import Progress as Step
from lorry.training.watching import Watcher


def train_and_tell(given: Mapping[str, Any], config: Path | None, resume: Path | None) -> Result:
    """Train as `config`, and the options that were given over it, say; or go on with the run in `resume`.

    Raises:
        CheckpointError: `resume` is no folder of a run.
        LorryError: as `train` does.
    """
    if resume is not None and not (resume / SETTINGS).is_file():
        raise CheckpointError(f"{resume} is no folder of a run: expected `{SETTINGS}` in it.")
    path = config if resume is None else resume / SETTINGS
    settings = (Settings() if path is None else Settings.read(path)).changed(given)
    if resume is not None:
        settings = settings.changed({"out": str(resume)})
    with _Screen(settings) as screen:
        return train(settings, screen, resume=resume is not None)


@final
class _Screen(Watcher):
    """One bar on standard error, notes above it; what the run has come to on standard output.

    The bar begins with the first thing that is told: nothing is, in all processes but the main one.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
        self._progress = Progress(*columns, console=console(stderr=True))
        self._task = self._progress.add_task("preparing", total=None, said="")

    def __enter__(self) -> _Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        self._progress.console.print(text, style="yellow", markup=False, emoji=False)

    def prepare(self, what: str, done: int, count: int) -> None:
        self._progress.start()
        self._progress.update(
            self._task,
            description="preparing",
            completed=done,
            total=count,
            said=f"{done:,}/{count:,} {what}",
        )

    def step(self, progress: Step) -> None:
        said = (
            f"{progress.step:,}/{progress.steps:,}  loss {progress.average:.4f}  "
            f"{progress.steps_per_second:.2f} steps/s  {_clock(progress.seconds_left)} left  "
            f"{size_of(progress.memory)}"
        )
        self._progress.start()
        self._progress.update(
            self._task, description="training", completed=progress.step, total=progress.steps, said=said
        )

    def saved(self, path: Path, step: int) -> None:
        self._progress.console.print(f"step {step:,}: {path}", style="dim", markup=False, emoji=False)

    def ended(self, adapter: Path, step: int, average: float, *, finished: bool) -> None:
        self._progress.stop()
        tell(f"{adapter}  (step {step:,}, average loss {average:.4f})")
        if not finished:
            out, steps = self._settings.out, self._settings.steps
            tell(f"Stopped at step {step:,} of {steps:,}. Go on with: lorry train --resume {out}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
