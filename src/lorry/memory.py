"""Large blocks of main memory, used again: the next adapter moves into the pages of one that has gone.

Pages that are new to the process cost several times what it costs to fill them, and giving pages back costs most of the
time that it takes to delete an adapter. A block that nothing refers to any more is therefore kept, and what is beyond
`LIMIT` then is given back by a thread that whoever lets adapters go begins (`shrink_spare`).
"""

from __future__ import annotations

import mmap
import weakref

import numpy as np
import torch
from torch import Tensor

from lorry.background import begun

SMALL = 1 << 20
"""Bytes. Blocks of less are Python's and torch's own business."""
LIMIT = 1 << 28
"""Bytes of memory that is kept for the next blocks, all together; twice as many until spare memory is shrunk."""
IN_USE = 0.95
"""The share of a block that has to be in use for it to be kept as it is."""
_spare: list[mmap.mmap] = []


def new_block(nbytes: int) -> Tensor:
    """Return (nbytes,) of uninitialised uint8 on the CPU, which nobody else has."""
    if nbytes < SMALL or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu")
    pages = _take_spare(nbytes) or mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    lent = np.frombuffer(pages, dtype=np.uint8, count=nbytes)  # goes with the last tensor over it
    weakref.finalize(lent, _give_back, pages).atexit = False
    return torch.from_numpy(lent)


def release_spare() -> None:
    """Let the memory go that is kept for the next blocks."""
    _spare.clear()


def shrink_spare() -> None:
    """Give back what is kept beyond `LIMIT`, by a thread: 0.06 ms a megabyte, in which no Python is held up."""
    if _kept_bytes() > LIMIT:
        begun(_drop_beyond, LIMIT)


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
    _drop_beyond(2 * LIMIT)


def _drop_beyond(limit: int) -> None:
    """Let the oldest blocks go until no more than `limit` bytes are kept."""
    while _kept_bytes() > limit:
        try:
            _spare.pop(0)
        except IndexError:  # another thread was faster
            return


def _kept_bytes() -> int:
    return sum(map(len, [*_spare]))
