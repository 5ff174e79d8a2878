"""Large blocks of main memory, used again: the next adapter moves into the pages of one that has gone.

Pages that are new to the process cost several times what it costs to fill them, and giving pages back costs most of the
time that it takes to delete an adapter. A block that nothing refers to any more is therefore kept, up to `LIMIT`.
"""

from __future__ import annotations

import mmap
import weakref

import numpy as np
import torch
from torch import Tensor

SMALL = 1 << 20
"""Bytes. Blocks of less are Python's and torch's own business."""
LIMIT = 1 << 28
"""Bytes of memory that is kept for the next blocks, all together."""
_spare: list[mmap.mmap] = []


def new_block(nbytes: int) -> Tensor:
    """Return (nbytes,) of uninitialised uint8 on the CPU, which nobody else has."""
    if nbytes < SMALL or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.empty(nbytes, dtype=torch.uint8)
    pages = _take_spare(nbytes) or mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    lent = np.frombuffer(pages, dtype=np.uint8, count=nbytes)  # goes with the last tensor over it
    weakref.finalize(lent, _give_back, pages).atexit = False
    return torch.from_numpy(lent)


def release_spare() -> None:
    """Let the memory go that is kept for the next blocks."""
    _spare.clear()


def _take_spare(nbytes: int) -> mmap.mmap | None:
    """Return the smallest block kept that is large enough, and not twice as large."""
    for pages in sorted(_spare, key=len):
        if nbytes <= len(pages) <= 2 * nbytes:
            try:
                _spare.remove(pages)
            except ValueError:  # another thread was faster
                continue
            return pages
    return None


def _give_back(pages: mmap.mmap) -> None:
    _spare.append(pages)
    while sum(map(len, _spare)) > LIMIT:
        _spare.pop(0)
