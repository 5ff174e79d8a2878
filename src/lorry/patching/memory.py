"""Memory for many tensors at once: one allocation, few page faults, and one copy where they lie side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter, mul
from sys import getrefcount
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lorry.memory import IN_USE, new_block

ALIGNMENT = 64
"""Bytes: a tensor begins at a multiple of it, and a gap of less does not part two tensors. A cache line."""
count_views: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)
"""Tells how many tensors see a memory, by the `_cdata` of its storage; None where torch, which keeps it to itself, has
it no more."""


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of memory that `tensors` take: of each storage, from the first of them to the last."""
    ends: dict[int, tuple[int, int, int]] = {}
    for tensor in (part for one in tensors for part in _parts(one)):
        storage, first = tensor.untyped_storage(), tensor.data_ptr()
        start, stop, size = ends.get(storage.data_ptr(), (first, first, storage.nbytes()))
        ends[storage.data_ptr()] = (min(start, first), max(stop, first + tensor.nbytes), size)
    return sum(min(size, padded(stop - start)) for start, stop, size in ends.values())


def _parts(tensor: Any) -> Iterator[Tensor]:
    """Yield the tensors that a packed one is made of; itself where it is plain."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))


def can_be_kept(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors may stay where they are: nearly all of their memory is in use, and they are plain."""
    one = one_storage(tensors)
    storages = [one] if one is not None else [tensor.untyped_storage() for tensor in tensors]
    held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    used = dict(zip(map(Tensor.data_ptr, tensors), map(attrgetter("nbytes"), tensors), strict=True))
    plain = all(map(Tensor.is_contiguous, tensors)) and not any(map(Tensor.is_inference, tensors))
    return plain and sum(used.values()) >= IN_USE * held


def one_storage(tensors: Sequence[Tensor]) -> torch.UntypedStorage | None:
    """Return the storage that all of `tensors` lie in, as a file's do; None where they lie in several, or are none.

    They are asked for their addresses: asking each for its storage takes four times as long.
    """
    if not tensors:
        return None
    storage, addresses = tensors[0].untyped_storage(), [*map(Tensor.data_ptr, tensors)]
    start, stop = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    return storage if start <= min(addresses) and max(addresses) < stop else None


def is_held_once(tensor: Tensor) -> bool:
    """Whether nobody else has the same memory, neither another tensor, as of a `state_dict()`, nor the bare storage."""
    if count_views is None:
        return False
    alone = torch.empty(1, device="cpu")
    both = (tensor.untyped_storage(), alone.untyped_storage())  # a storage has one object in Python at most
    views, holders = {count_views(one._cdata) for one in both}, {getrefcount(one) for one in both}
    return len(views) == len(holders) == 1


def padded(nbytes: int) -> int:
    """Return `nbytes`, rounded up to where the next tensor may begin."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def empty_block(nbytes: int, device: torch.device) -> Tensor:
    """Return (nbytes,) of uninitialised uint8 on `device`."""
    if device.type == "cpu":
        return new_block(nbytes)
    return torch.empty(nbytes, dtype=torch.uint8, device=device)


@final
class Block:
    """Memory on one device, handed out tensor by tensor. It is freed when the last of them is."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self._memory = empty_block(padded(nbytes), device)
        self._typed: dict[torch.dtype, Tensor] = {}
        self._start = 0

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a tensor over the next bytes, uninitialised."""
        if dtype not in self._typed:
            self._typed[dtype] = self._memory.view(dtype)
        strides = [*accumulate(reversed(shape[1:]), mul, initial=1)]
        start, self._start = self._start, self._start + padded(strides[-1] * shape[0] * dtype.itemsize)
        return self._typed[dtype].as_strided(shape, strides[::-1], start // dtype.itemsize)


def copied(tensors: Sequence[Tensor], device: torch.device, *, pinned: bool = False) -> list[Tensor]:
    """Copy tensors to `device`, each in its dtype, into one block of memory.

    Tensors that lie side by side in one storage, as a file's do, are copied together: one copy for a whole file.

    Args:
        tensors: on any device.
        device: where to.
        pinned: by way of pinned memory where they are on the CPU, so that a GPU fetches them by itself. The copies are
            there when the current stream has come so far.
    """
    sources = [tensor.detach().contiguous() for tensor in tensors]
    runs = runs_of(sources)
    block = empty_block(sum(padded(run.nbytes) for run in runs), device)
    views: dict[torch.dtype, Tensor] = {}
    copies: list[Tensor] = [block] * len(sources)
    start = 0
    for run in runs:
        source = run.bytes()
        if pinned and source.device.type == "cpu":
            source = source.pin_memory()
        block[start : start + run.nbytes].copy_(source, non_blocking=pinned)
        for index, offset in run.members:
            source = sources[index]
            if source.dtype not in views:
                views[source.dtype] = block[: len(block) // source.itemsize * source.itemsize].view(
                    source.dtype
                )
            at = (start + offset) // source.itemsize
            copies[index] = views[source.dtype].as_strided(source.shape, source.stride(), at)
        start += padded(run.nbytes)
    return copies


@final
@dataclass(slots=True)
class Run:
    """Tensors side by side in one storage."""

    first: Tensor
    nbytes: int
    members: list[tuple[int, int]]
    """Which tensors, each with the bytes between the run's beginning and its own."""

    def bytes(self) -> Tensor:
        """Return the run as (nbytes,) of uint8 over the same memory."""
        start = self.first.storage_offset() * self.first.itemsize
        flat = torch.empty(0, dtype=torch.uint8, device=self.first.device)
        return flat.set_(self.first.untyped_storage(), start, (self.nbytes,))  # pyright: ignore[reportCallIssue]


def runs_of(tensors: Sequence[Tensor]) -> list[Run]:
    """Sort tensors into runs of those that lie side by side."""
    pointers = [tensor.data_ptr() for tensor in tensors]
    runs: list[Run] = []
    begin = storage = 0
    for index in sorted(range(len(tensors)), key=pointers.__getitem__):
        tensor, offset = tensors[index], pointers[index] - begin
        same = runs and tensor.untyped_storage().data_ptr() == storage
        if not same or offset > runs[-1].nbytes + ALIGNMENT or offset % tensor.itemsize:
            begin, storage, offset = pointers[index], tensor.untyped_storage().data_ptr(), 0
            runs.append(Run(tensor, 0, []))
        runs[-1].members.append((index, offset))
        runs[-1].nbytes = max(runs[-1].nbytes, offset + tensor.nbytes)
    return runs
