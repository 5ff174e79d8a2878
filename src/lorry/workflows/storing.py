"""Write adapters that a workflow made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from lorry.adapters import Adapter
from lorry.dialects import check_replaceable, get_dialect
from lorry.errors import FileError, StateError, UnsupportedAdapterError
from lorry.files import HASH_KEYS, TensorFile, check_writable, size_on_disk, write_safetensors
from lorry.workflows.finite import check_made

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FALLBACK = "kohya"
"""What an adapter is written in where its own dialect is not written: what most programs read."""
_STALE = (
    "lora_adapter_metadata",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
    "ss_network_module",
)
"""Metadata on ranks and alphas, which a new adapter has its own of."""


def get_dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    """Return the dtype of that name; None for None.

    Raises:
        StateError: it is none that adapters are written in.
    """
    if name is None or isinstance(name, torch.dtype):
        return name
    if name not in DTYPES:
        raise StateError(f"{name!r} is no dtype to write: expected {', '.join(DTYPES)}.")
    return DTYPES[name]


def dtype_of(adapters: Sequence[Adapter]) -> torch.dtype:
    """Return the dtype that holds the tensors of all adapters; float32 at most."""
    found = {t.dtype for a in adapters for e in a.entries for t in e.delta.tensors().values()}
    widest = torch.float16 if found == {torch.float16} else torch.bfloat16
    for dtype in found:
        widest = widest if dtype.itemsize == 1 else torch.promote_types(widest, dtype)
    return torch.float32 if widest is torch.float64 else widest


def to_file(adapter: Adapter, dialect: str | None) -> TensorFile:
    """Return the file of an adapter in a dialect; in its own where None and that is written, else in kohya's.

    Raises:
        UnsupportedAdapterError: the dialect cannot carry what the adapter holds.
    """
    if dialect is not None:
        return get_dialect(dialect).write(adapter)
    try:
        return get_dialect(adapter.dialect).write(adapter)
    except UnsupportedAdapterError:
        return get_dialect(FALLBACK).write(adapter)


def check_destination(path: str | os.PathLike[str] | None, dialect: str | None = None) -> None:
    """Raise, before the work, where `write_adapter` could not write or would write over another thing than an adapter.

    Raises:
        FileError: says what is wrong with the place.
        StateError: there is none, and yet a dialect to write in.
        UnknownDialectError: there is no such dialect.
    """
    if path is None and dialect is not None:
        raise StateError(
            f"The dialect {dialect!r} is to be written in: say where (`--out FILE`), or leave it away."
        )
    if path is None:
        return
    if dialect is not None:
        get_dialect(dialect)
    if Path(path).suffix != ".safetensors":
        raise FileError(f"{path}: expected a file that ends in .safetensors.")
    check_replaceable(path)
    check_writable(path)


def write_adapter(adapter: Adapter, path: str | os.PathLike[str], dialect: str | None = None) -> Path:
    """Write an adapter to a safetensors file; see `to_file` for the dialect.

    Raises:
        NotFiniteError: it has numbers that its dtype does not hold.
    """
    check_made(adapter, path)
    file = to_file(adapter, dialect)
    return write_safetensors(path, file.tensors, file.metadata)


def size_of_file(adapter: Adapter, dialect: str | None = None) -> int:
    """Return the bytes that `write_adapter` will write."""
    file = to_file(adapter, dialect)
    return size_on_disk(file.tensors, file.metadata)


def size_of_source(adapter: Adapter) -> int:
    """Return the bytes of the file that an adapter was read from; those of its tensors where that is no file."""
    path = Path(adapter.source)
    return path.stat().st_size if path.is_file() else adapter.nbytes


def kept_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata that stays true of an adapter whose tensors were made anew."""
    return {key: value for key, value in metadata.items() if key not in (*_STALE, *HASH_KEYS)}


def common_metadata(adapters: Sequence[Adapter]) -> dict[str, str]:
    """Return the metadata that several adapters agree on; the trigger words of all in one line."""
    first = kept_metadata(adapters[0].metadata)
    same = {k: v for k, v in first.items() if all(a.metadata.get(k) == v for a in adapters)}
    phrases = [a.metadata[key] for a in adapters if (key := "modelspec.trigger_phrase") in a.metadata]
    return same | ({"modelspec.trigger_phrase": ", ".join(dict.fromkeys(phrases))} if phrases else {})
