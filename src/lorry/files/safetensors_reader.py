"""Read safetensors files: whole ones as views of a memory map, or headers alone."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from contextlib import ExitStack
from io import BufferedReader
from itertools import repeat
from pathlib import Path

import torch
from torch import Tensor

from lorry.background import LARGE, begun, there
from lorry.errors import AdapterNotFoundError, BrokenFileError
from lorry.files._layout import LENGTH_BYTES, Layout, Span, Spans, header_length, parse_header
from lorry.files.tensor_file import TensorFile
from lorry.memory import new_block

ALIGNMENT = 8
"""The most that an element of any dtype takes, which is where its address must be a multiple of."""


@torch.inference_mode(False)
def read_safetensors(
    path: str | os.PathLike[str], *, into_memory: bool = False, early: bool = False
) -> TensorFile:
    """Read a safetensors file through one memory map, or into one block of memory.

    Args:
        path: of the file.
        into_memory: read the bytes now, into memory that is the tensors' own: what becomes of the file afterwards does
            not matter to them.
        early: return while a thread still reads them. They are there when `arrived` of what is returned has returned.

    Returns:
        Its tensors, on the CPU and sharing one block. That is the map's memory: bytes are read when they are first
        used, and writing to a tensor changes neither the file nor another reader. Files of 2022 and 2023, whose data
        does not begin at a multiple of eight bytes, are read into memory always.

    Raises:
        AdapterNotFoundError: there is no such file.
        BrokenFileError: the header does not describe the file, or it was cut off meanwhile.
    """
    source = os.fspath(path)
    with ExitStack() as stack:
        file = stack.enter_context(_open(path))
        layout = _read_layout(file, source)
        if not (into_memory or layout.data_start % ALIGNMENT):
            # Copy on write: torch warns about memory that it may not write to.
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            whole = torch.frombuffer(data, dtype=torch.uint8)
            views = _views(whole, layout.data_start, layout.table)
            return TensorFile(views, layout.metadata, source, spans=layout.table)
        whole, arrived = new_block(layout.table.nbytes), there
        if len(whole) < LARGE:
            _fill(whole, file, source)
        else:  # they are laid out meanwhile
            arrived = begun(_fill, whole, file, source).result
        stack.pop_all()  # who reads it closes it
    views = _views(whole, 0, layout.table, arrived)
    block = None if layout.table.others else whole
    found = TensorFile(views, layout.metadata, source, spans=layout.table, arrived=arrived, block=block)
    return found if early else found.whole()


def read_header(path: str | os.PathLike[str]) -> TensorFile:
    """Read what a safetensors file says about itself, and no weights.

    Args:
        path: of the file.

    Returns:
        Its tensors on the meta device; but those of at most one element (alphas) hold their value.

    Raises:
        AdapterNotFoundError: there is no such file.
        BrokenFileError: the header does not describe the file.
    """
    source = os.fspath(path)
    with _open(path) as file:
        layout = _read_layout(file, source)
        tensors = {span.key: _shape_or_value(file, layout.data_start, span) for span in layout.spans}
    return TensorFile(tensors, layout.metadata, source)


def _open(path: str | os.PathLike[str]) -> BufferedReader:
    if Path(path).exists() and not Path(path).is_file():  # opening a pipe would wait for who writes to it
        raise AdapterNotFoundError(f"{path}: the file cannot be opened: it is no regular file.")
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise AdapterNotFoundError(f"{path}: the file cannot be opened: {error.strerror}.") from error


def _read_layout(file: BufferedReader, source: str) -> Layout:
    size = os.fstat(file.fileno()).st_size
    length = header_length(file.read(LENGTH_BYTES), size, source)
    return parse_header(file.read(length), size, source)


def _fill(whole: Tensor, file: BufferedReader, source: str) -> None:
    """Read all that follows the header into `whole`, (bytes,) of uint8, and close the file."""
    with file:
        count = file.readinto(whole.numpy().data)
    if count != len(whole):
        raise BrokenFileError(
            f"{source}: expected {len(whole)} bytes of data, got less. Was it changed meanwhile?"
        )


def _views(
    whole: Tensor, data_start: int, table: Spans, wait: Callable[[], object] = there
) -> dict[str, Tensor]:
    """Return every tensor as a view of one storage: `torch.frombuffer` for each would take longer than the reading.

    `data_start` is a multiple of `ALIGNMENT`. `wait` is called before bytes are looked at, which may still be read.
    """
    views = dict.fromkeys((span.key for span in table.each), whole)  # in their order
    for dtype, keys, shapes, strides, starts in table.columns:
        width = dtype.itemsize
        typed, first = whole[: len(whole) // width * width].view(dtype), data_start // width
        offsets = [first + start for start in starts] if first else starts
        views.update(zip(keys, map(Tensor.as_strided, repeat(typed), shapes, strides, offsets), strict=True))
    for key, dtype, shape, start, stop in table.others:
        if start == stop:
            views[key] = torch.empty(shape, dtype=dtype, device="cpu")
        else:
            wait()
            views[key] = whole[data_start + start : data_start + stop].clone().view(dtype).view(shape)
    return views


def _shape_or_value(file: BufferedReader, data_start: int, span: Span) -> Tensor:
    size = span.stop - span.start
    if size > span.dtype.itemsize:
        return torch.empty(span.shape, dtype=span.dtype, device="meta")
    if size == 0:
        return torch.empty(span.shape, dtype=span.dtype, device="cpu")
    file.seek(data_start + span.start)
    return torch.frombuffer(bytearray(file.read(size)), dtype=span.dtype).view(span.shape)
