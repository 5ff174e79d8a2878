"""Where the original weights of fused parameters are kept."""

from __future__ import annotations

import mmap
import tempfile
from dataclasses import dataclass
from typing import IO, Literal, Self, final

import torch
from torch import Tensor

Originals = Literal["device", "cpu", "disk", "none"]
"""Where the original weights of fused targets are kept: beside the fused ones (unfuse swaps pointers), in main memory
or in a temporary file (unfuse copies them back), or nowhere (half the memory, and unfuse refuses)."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class Saved:
    """The original of one parameter."""

    tensor: Tensor | None
    """None where none was kept."""
    in_file: bool = False
    beside: bool = False
    """It is where its parameter is, and goes where that goes."""

    def found(self, device: torch.device, dtype: torch.dtype) -> Tensor | None:
        """Return it on a device, itself where it is there; None where none was kept."""
        return None if self.tensor is None else self.tensor.to(device, dtype, copy=self.in_file)


@final
class Keeper:
    """Keeps originals in one of these places. Inside the context; what is kept stays."""

    def __init__(self, where: Originals) -> None:
        self._where = where
        self._file: IO[bytes] | None = None
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()  # its memory maps keep what it holds

    def keep(self, original: Tensor) -> Saved:
        """Keep a tensor, or a copy of its bits elsewhere."""
        if self._where == "none":
            return Saved(None)
        if self._where == "cpu":
            return Saved(original.to("cpu", copy=original.device.type == "cpu"))
        return (
            Saved(self._written(original), in_file=True)
            if self._where == "disk"
            else Saved(original, beside=True)
        )

    def _written(self, original: Tensor) -> Tensor:
        """Return a copy in a file without a name, which is gone when the last such tensor is."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="lorry-originals-")  # noqa: SIM115
        start = -(-self._end // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        self._end = start + max(1, original.nbytes)
        self._file.truncate(self._end)
        pages = mmap.mmap(self._file.fileno(), self._end - start, offset=start)
        flat = torch.frombuffer(pages, dtype=original.dtype, count=original.numel())
        return flat.as_strided(original.shape, original.stride()).copy_(original)
