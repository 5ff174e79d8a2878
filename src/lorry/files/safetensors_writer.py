"""Write safetensors files: the same bytes for the same tensors, and never half a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from lorry.errors import FileError
from lorry.files._layout import DTYPES, LENGTH_BYTES
from lorry.files.replacing import replace_file

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write tensors and text to a safetensors file.

    The file appears whole or not at all, and an older one of that name stays until then. The bytes depend on the
    tensors and the text alone, not on the order they are given in. Tensors that share memory are written one by one.

    Args:
        path: of the file; its folder must be there.
        tensors: on any device, contiguous or not.
        metadata: text for the header.

    Returns:
        `path`.

    Raises:
        FileError: a tensor or a text that the format cannot hold, or the file cannot be written.
    """
    for key, tensor in tensors.items():
        if tensor.is_meta:
            raise _unwritable(key, tensor)
    return stream_safetensors(path, tensors, tensors.__getitem__, metadata)


def stream_safetensors(
    path: str | os.PathLike[str],
    outlines: Mapping[str, Tensor],
    produce: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a file like `write_safetensors`, with only one tensor at a time in memory.

    Args:
        path: of the file; its folder must be there.
        outlines: what the header says: tensors of the dtypes and shapes to come, on the meta device or any other.
        produce: called once for each key, when its turn has come.
        metadata: text for the header.

    Raises:
        FileError: as `write_safetensors`; or a tensor differs from its outline, and then no file is left.
    """
    path = Path(path)
    order = _order(outlines)
    header = _header({key: outlines[key] for key in order}, metadata or {})

    def write(file: BinaryIO) -> None:
        file.write(len(header).to_bytes(LENGTH_BYTES, "little"))
        file.write(header)
        for key in order:
            tensor, outline = produce(key), outlines[key]
            if (tensor.dtype, tensor.shape) != (outline.dtype, outline.shape) or tensor.is_meta:
                raise FileError(
                    f"`{key}`: expected {outline.dtype} {tuple(outline.shape)}, got {tensor.dtype} "
                    f"{tuple(tensor.shape)} on {tensor.device}."
                )
            file.write(_bytes(tensor))

    replace_file(path, write)
    return path


def size_on_disk(outlines: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> int:
    """Return how many bytes a file of these tensors and this text will have."""
    header = _header({key: outlines[key] for key in _order(outlines)}, metadata or {})
    return LENGTH_BYTES + len(header) + sum(tensor.nbytes for tensor in outlines.values())


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    return sorted(tensors, key=lambda key: (-tensors[key].dtype.itemsize, key))


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    wrong = [key for key, value in metadata.items() if not isinstance(key, str) or not isinstance(value, str)]
    if wrong:
        raise FileError(
            f"Metadata of safetensors is text: {wrong[0]!r} is not. Use `json.dumps` on its value."
        )
    described: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for key, tensor in tensors.items():
        if tensor.dtype not in _NAMES or tensor.layout != torch.strided or key == "__metadata__":
            raise _unwritable(key, tensor)
        span = [at, at + tensor.numel() * tensor.dtype.itemsize]
        described[key] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        at = span[1]
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    return text + b" " * (-len(text) % LENGTH_BYTES)


def _unwritable(key: str, tensor: Tensor) -> FileError:
    return FileError(f"`{key}`: {tensor.dtype} on {tensor.device} cannot be written to safetensors.")


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
