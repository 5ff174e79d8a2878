"""Times, peaks of memory, and the floors that the machine sets."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that `action` takes, a GPU's work included."""
    gc.collect()  # a full collection in the middle would cost more than most operations
    synchronise()
    start = time.perf_counter()
    action()
    synchronise()
    return time.perf_counter() - start


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def wait_for_threads() -> None:
    """Let lorry's threads end: what one of them still does, giving memory back, is of the operation before."""
    for thread in threading.enumerate():
        if thread.name.startswith("lorry"):
            thread.join()


def peak_bytes(action: Callable[[], object]) -> int:
    """Return by how many bytes the process grows at most in `action` (pages of mapped files included)."""
    if not CLEAR.exists():
        return 0
    wait_for_threads()
    gc.collect()
    with contextlib.suppress(
        AttributeError, OSError
    ):  # what malloc has kept would be used again, and not be counted
        ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    CLEAR.write_text("5")  # the peak is counted from here
    action()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    if not STATUS.exists():
        return 0
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


@dataclass(frozen=True)
class Row:
    """One operation: the seconds of both programs, and what the machine allows."""

    operation: str
    ours: list[float]
    theirs: list[float] = field(default_factory=list)
    floor: float | None = None

    @property
    def ratio(self) -> float | None:
        """Their median over ours."""
        return statistics.median(self.theirs) / statistics.median(self.ours) if self.theirs else None

    def markdown(self) -> str:
        ratio = "" if self.ratio is None else f"{self.ratio:.3g}x"
        floor = "" if self.floor is None else milliseconds(self.floor)
        return f"| {self.operation} | {_times(self.ours)} | {_times(self.theirs)} | {ratio} | {floor} |"


HEAD = ["| operation | lorry | diffusers + PEFT | ratio | floor |", "|---|---|---|---|---|"]


def _times(seconds: list[float]) -> str:
    if not seconds:
        return ""
    return f"{milliseconds(statistics.median(seconds))} ({milliseconds(min(seconds))} to {milliseconds(max(seconds))})"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.3g} ms" if seconds < 1 else f"{seconds * 1e3:,.0f} ms"


@dataclass(frozen=True)
class Machine:
    """What the machine does a second."""

    copied: float
    """Bytes, from memory in use to memory in use."""
    copied_fresh: float
    """Bytes, to memory that is new to the process."""
    flops: float
    """Of a product of the shape that fusing a LoRA of rank 16 has, sums included, in the faster of two dtypes."""

    @classmethod
    def measured(cls) -> Machine:
        """Measure the best of some tries."""
        size = 1 << 26
        source, target = torch.ones(size, dtype=torch.float32), torch.ones(size, dtype=torch.float32)
        again = min(timed(lambda: target.copy_(source)) for _ in range(5))
        fresh = min(timed(source.clone) for _ in range(3))
        product = min(_seconds_of_a_product(dtype) for dtype in (torch.bfloat16, torch.float32))
        return cls(4 * size / again, 4 * size / fresh, 2 * 16 * 1280**2 / product)


def _seconds_of_a_product(dtype: torch.dtype) -> float:
    weight = torch.ones(1280, 1280, dtype=dtype)
    up, down, out = weight[:, :16].contiguous(), weight[:16].contiguous(), torch.empty_like(weight)
    return (
        min(timed(lambda: [torch.addmm(weight, up, down, out=out) for _ in range(20)]) for _ in range(5)) / 20
    )
