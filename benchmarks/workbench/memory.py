"""What a command takes at most, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PROGRAM = """
import sys
from lorry.cli import main
try:
    main()
finally:
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print("peak", line.split()[1], file=sys.stderr)
"""
"""The system's own count for children would begin with what this process has."""


def peak_of(words: Sequence[str | Path]) -> tuple[float, float]:
    """Return the seconds that a lorry command takes, and its peak in 10^6 bytes.

    Raises:
        RuntimeError: it failed.
    """
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr}")
    peak = next(line for line in done.stderr.splitlines() if line.startswith("peak "))
    return seconds, int(peak.split()[1]) * 1024 / 1e6
