"""The memory of a process that works on one large tensor after the other."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


def trim_heap() -> None:
    """Give the free memory of the C heap back to the system, where its library can (glibc); elsewhere do nothing.

    glibc seldom finds the hole that one aligned tensor left behind large enough for the next of the same size, and
    grows its heap instead: on SDXL by gigabytes that hold nothing.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another library, or another system
        return None
