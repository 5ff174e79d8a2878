"""Read the tensors of a file one at a time, into memory that is given back with them."""

from __future__ import annotations

import mmap
import os
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from lorry.errors import BrokenFileError
from lorry.files._layout import Layout, Span
from lorry.files.closing import Closing
from lorry.files.pickles import read_pickle
from lorry.files.safetensors_reader import _open, _read_layout
from lorry.files.tensor_file import TensorFile

LARGE = 1 << 20
"""Tensors from this size on, in bytes, are given pages of their own by the system. In the heap, small results that are
kept would fill the holes that they leave, and the next large one would grow it, until gigabytes stood by."""


@final
class TensorReader(Closing):
    """An open safetensors file, for files larger than the memory: nothing but what is asked for is read.

    A memory map would count every page that was ever touched; this holds none. Use it as a context manager.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the file and read its header.

        Raises:
            AdapterNotFoundError: there is no such file.
            BrokenFileError: the header does not describe the file.
        """
        self.source = os.fspath(path)
        self._file = _open(path)
        try:
            self._layout: Layout = _read_layout(self._file, self.source)
        except BaseException:
            self._file.close()
            raise
        self._spans: dict[str, Span] = {span.key: span for span in self._layout.spans}

    @cached_property
    def outline(self) -> TensorFile:
        """The file with every tensor on the meta device."""
        outlines = {
            key: torch.empty(span.shape, dtype=span.dtype, device="meta") for key, span in self._spans.items()
        }
        return TensorFile(outlines, self._layout.metadata, self.source)

    def read(self, key: str) -> Tensor:
        """Return one tensor, in memory of its own.

        Raises:
            KeyError: the file has none of that name.
            BrokenFileError: the file was cut off since it was opened.
        """
        span = self._spans[key]
        size = span.stop - span.start
        if size == 0:
            return torch.empty(span.shape, dtype=span.dtype, device="cpu")
        data = mmap.mmap(-1, size) if size >= LARGE else bytearray(size)
        self._file.seek(self._layout.data_start + span.start)
        if self._file.readinto(data) != size:
            raise BrokenFileError(
                f"{self.source}: `{key}`: the file ends before it. Was it changed meanwhile?"
            )
        return torch.frombuffer(data, dtype=span.dtype).view(span.shape)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@final
class PickleReader(Closing):
    """A pickle of tensors under the face of a `TensorReader`. It has no header, so that all of it is in memory."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the file, as `read_pickle` does.

        Raises:
            AdapterNotFoundError: there is no such file.
            BrokenFileError: it holds anything but tensors and numbers.
        """
        self._file = read_pickle(path)

    @cached_property
    def outline(self) -> TensorFile:
        """The file with every tensor on the meta device."""
        outlines = {
            key: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            for key, tensor in self._file.tensors.items()
        }
        return TensorFile(outlines, self._file.metadata, self._file.source)

    def read(self, key: str) -> Tensor:
        """Return one tensor, in memory of its own.

        Raises:
            KeyError: the file has none of that name.
        """
        return self._file.tensors[key].clone(memory_format=torch.contiguous_format)

    def close(self) -> None:
        """Give the memory back."""
        self._file = TensorFile({}, {}, self._file.source)
