"""What a run tells whoever watches it."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch


@final
@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is after a step."""

    step: int
    """How many are done."""
    steps: int
    loss: float
    """Of this step, over all processes."""
    average: float
    """Of the last steps, about fifty of them."""
    rate: float
    steps_per_second: float
    memory: int
    """The most bytes held so far: on the GPU where there is one, of the process elsewhere."""

    @property
    def seconds_left(self) -> float:
        return (self.steps - self.step) / self.steps_per_second if self.steps_per_second else 0.0


class Watcher(ABC):
    """Is told what happens in a run, in the main process only."""

    @abstractmethod
    def note(self, text: str) -> None:
        """Something that a person should know, in a sentence."""

    @abstractmethod
    def prepare(self, what: str, done: int, count: int) -> None:
        """Something before the first step goes on."""

    @abstractmethod
    def step(self, progress: Progress) -> None:
        """A step is done."""

    @abstractmethod
    def saved(self, path: Path, step: int) -> None:
        """A file was written."""

    @abstractmethod
    def ended(self, adapter: Path, step: int, average: float, *, finished: bool) -> None:
        """The run has come to its last step, or was asked to stop (not `finished`).

        Args:
            adapter: the file, of the state at `step`.
            step: how many are done.
            average: of the losses of the last steps.
            finished: whether these are all.
        """


@final
class Silent(Watcher):
    """Says nothing."""

    def note(self, text: str) -> None:
        pass

    def prepare(self, what: str, done: int, count: int) -> None:
        pass

    def step(self, progress: Progress) -> None:
        pass

    def saved(self, path: Path, step: int) -> None:
        pass

    def ended(self, adapter: Path, step: int, average: float, *, finished: bool) -> None:
        pass


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that were held so far: by torch on a CUDA device, by the whole process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import psutil  # comes with accelerate

    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
