"""Read torch pickles without letting them run code."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lorry.errors import AdapterNotFoundError, BrokenFileError
from lorry.files.tensor_file import TensorFile

NESTS = ("state_dict", "lora_state_dict", "weights")
"""Keys under which training frameworks hide the weights of a checkpoint."""
LIST_MARKER = "lorry.pickled_list"
"""Stands in the metadata of a pickle that held a bare list of tensors; its keys are their positions."""


def read_pickle(path: str | os.PathLike[str]) -> TensorFile:
    """Read a `.bin`, `.pt`, `.pth` or `.ckpt` file of tensors.

    Args:
        path: of the file.

    Returns:
        Its tensors on the CPU, unnested from `state_dict` and the like. Plain numbers become float64 tensors. A bare
        list comes back under "0", "1", …, with `LIST_MARKER` in the metadata.

    Raises:
        AdapterNotFoundError: there is no such file.
        BrokenFileError: it holds anything but tensors and numbers: code, objects, or no pickle at all.
    """
    source = os.fspath(path)
    content = _load(source)
    for _ in NESTS:
        nest = next(
            (key for key in NESTS if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)),
            None,
        )
        content = content[nest] if nest else content
    if isinstance(content, list | tuple) and content:
        listed = {str(i): _tensor(value, str(i), source) for i, value in enumerate(content)}
        return TensorFile(listed, {LIST_MARKER: str(len(listed))}, source)
    if not isinstance(content, Mapping):
        raise _broken(source, "tensors by name, or a list of tensors", type(content).__name__)
    return TensorFile(
        {_text(key, source): _tensor(value, key, source) for key, value in content.items()}, {}, source
    )


def _load(source: str) -> Any:
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise AdapterNotFoundError(f"{source}: the file cannot be opened: {error.strerror}.") from error
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n\n")[-1] if "GLOBAL" not in str(error) else _offender(str(error))
        raise _broken(source, "a pickle of nothing but tensors", reason) from error
    except (
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OSError,
        zipfile.BadZipFile,
    ) as error:
        raise _broken(source, "a torch pickle", str(error) or type(error).__name__) from error


def _offender(message: str) -> str:
    after = message.split("GLOBAL ", 1)[1].split()
    return f"one that would run {after[0]}" if after else "one that would run code"


def _text(key: object, source: str) -> str:
    if not isinstance(key, str):
        raise _broken(source, "names as keys", repr(key))
    return key


def _tensor(value: object, key: object, source: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return torch.tensor(float(value), dtype=torch.float64)
    raise _broken(source, f"a tensor under {key!r}", type(value).__name__)


def _broken(source: str, expected: str, got: str) -> BrokenFileError:
    return BrokenFileError(
        f"{source}: expected {expected}, got {got[:300]}. Lorry runs no code of a file: ask the author for a "
        "safetensors file, or convert it where you trust it."
    )
