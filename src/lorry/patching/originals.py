"""Where the original weights of fused parameters are kept."""

from __future__ import annotations

import mmap
import os
import tempfile
from dataclasses import dataclass
from typing import IO, Literal, Self, final

import torch
from torch import Tensor, nn

from lorry.errors import FuseError

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

    def beside_it(self, fused: Tensor) -> Tensor | None:
        """Return it where it can be put back as it is: plain, kept beside its parameter, and like what is fused there.

        A parameter may have been cast, or moved, since it was fused first.
        """
        tensor = self.tensor
        if not self.beside or type(tensor) is not Tensor:
            return None
        return tensor if tensor.dtype is fused.dtype and tensor.device == fused.device else None

    def found(self, like: Tensor, name: str) -> Tensor:
        """Return it where `like` is and in its dtype, itself where it is so.

        Raises:
            FuseError: none was kept of this parameter, named `name`.
        """
        tensor = self.tensor
        if tensor is None:
            raise no_originals(name)
        if self.beside and tensor.dtype is like.dtype and tensor.device == like.device:
            return tensor
        return there(tensor, like.device, like.dtype, copy=self.in_file)


def no_originals(name: str) -> FuseError:
    """Make the error for a fused parameter, named `name`, of which no original was kept."""
    return FuseError(
        f'`{name}` was fused with `originals="none"`: there are no saved bits to go back to. Load the base model '
        "again, or keep the fused weights for good with `unload_lora_weights(keep_fused=True)`."
    )


def there(tensor: Tensor, device: torch.device, dtype: torch.dtype, *, copy: bool = False) -> Tensor:
    """Return a tensor on a device and in a dtype, itself where it is so; of packed parameters the bits are kept."""
    if type(tensor) is Tensor or not isinstance(
        tensor, nn.Parameter
    ):  # the second costs as much as all the rest
        return tensor.to(device, dtype, copy=copy)
    moved = tensor if tensor.device == device else tensor.to(device)
    return moved if isinstance(moved, nn.Parameter) else nn.Parameter(moved, requires_grad=False)


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
        """Keep a tensor, or a copy of its bits elsewhere.

        Raises:
            FuseError: a packed parameter would have to go elsewhere, or there is no room on the disk.
        """
        if self._where == "none":
            return Saved(None)
        if isinstance(original, nn.Parameter) and self._where != "device":
            raise FuseError(
                f"The originals of quantized weights stay beside the fused ones, which are as small: expected "
                f'`originals="device"` or "none", got {self._where!r}.'
            )
        if self._where == "cpu":
            return Saved(original.to("cpu", copy=original.device.type == "cpu"))
        return (
            Saved(self._written(original), in_file=True)
            if self._where == "disk"
            else Saved(original, beside=True)
        )

    def _written(self, original: Tensor) -> Tensor:
        """Return a copy in a file without a name, which is gone when the last such tensor is.

        Raises:
            FuseError: there is no room for it.
        """
        start = -(-self._end // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        self._end = start + max(1, original.nbytes)
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="lorry-originals-")  # noqa: SIM115
            self._file.truncate(self._end)
            if hasattr(os, "posix_fallocate"):  # a page without room would end the process when it is written
                os.posix_fallocate(self._file.fileno(), start, self._end - start)
            pages = mmap.mmap(self._file.fileno(), self._end - start, offset=start)
        except OSError as error:
            raise FuseError(
                f'With `originals="disk"` the original weights are kept in a temporary file, which cannot be written '
                f"({error.strerror}). Let TMPDIR name a folder with room for as many bytes as the weights that are "
                "fused have, or keep them elsewhere."
            ) from error
        flat = torch.frombuffer(pages, dtype=original.dtype, count=original.numel())
        return flat.as_strided(original.shape, original.stride()).copy_(original)
