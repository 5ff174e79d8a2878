"""Adapters in several parts: safetensors files with an index that says which tensor lies in which of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lorry.errors import AdapterNotFoundError, BrokenFileError, some
from lorry.files.tensor_file import TensorFile

INDEX = ".safetensors.index.json"
_PART = re.compile(r"(?P<stem>.+)-\d+-of-\d+\.safetensors")


def is_index(path: Path) -> bool:
    """Whether a path is that of an index of parts."""
    return path.name.endswith(INDEX)


def without_parts(names: list[str]) -> list[str]:
    """Return the names of a folder's files without those of parts that an index there speaks for."""
    stems = {name.removesuffix(INDEX) for name in names if name.endswith(INDEX)}
    return [name for name in names if not ((found := _PART.fullmatch(name)) and found["stem"] in stems)]


def part_names(index: Path) -> list[str]:
    """Return the names of the parts that an index lists, which lie beside it.

    Raises:
        BrokenFileError: it is no index, or names a file that is not beside it.
    """
    return sorted(set(_read_map(index).values()))


def part_paths(weights: Path) -> list[Path]:
    """Return the files that hold an adapter's tensors: the parts of an index, or the one file itself.

    Raises:
        AdapterNotFoundError: a part is not there.
        BrokenFileError: the index is broken.
    """
    if not is_index(weights):
        return [weights]
    names = part_names(weights)
    missing = [name for name in names if not (weights.parent / name).is_file()]
    if missing:
        raise AdapterNotFoundError(
            f"{weights} lists {len(names)} parts, of which {some(map(repr, missing))} {_are(missing)} not there. Get "
            "the whole adapter: nothing of it is loaded."
        )
    return [weights.parent / name for name in names]


def read_parts(index: Path, read: Callable[[Path], TensorFile]) -> TensorFile:
    """Read the parts of an adapter as one file.

    Args:
        index: the file that lists them.
        read: reads one of them.

    Raises:
        AdapterNotFoundError: a part is not there.
        BrokenFileError: the index is broken, or says of a tensor that it lies where it does not.
    """
    listed = _read_map(index)
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for path in part_paths(index):
        part = read(path)
        meant = {key for key, name in listed.items() if name == path.name}
        wrong = sorted(meant ^ part.tensors.keys())
        if wrong:
            raise BrokenFileError(
                f"{path}: expected the {len(meant)} tensors that {index.name} lists for it, got {len(part.tensors)}; "
                f"{some(map(repr, wrong), 3)} {_are(wrong)} in one of the two alone. The parts are not of one adapter."
            )
        tensors.update(part.tensors)
        metadata.update(part.metadata)
    return TensorFile(tensors, metadata, str(index))


def _read_map(index: Path) -> Mapping[str, str]:
    """Return which part each tensor lies in."""
    try:
        parsed: Any = json.loads(index.read_text("utf-8"))
    except OSError as error:
        raise AdapterNotFoundError(f"{index}: the file cannot be opened: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise BrokenFileError(f"{index}: expected JSON, got: {error}.") from error
    found = parsed.get("weight_map") if isinstance(parsed, dict) else None
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise BrokenFileError(
            f"{index}: expected a `weight_map` from the names of tensors to those of files."
        )
    for name in found.values():
        if not name.endswith(".safetensors") or name != Path(name).name or "\\" in name or "\0" in name:
            raise BrokenFileError(f"{index}: expected safetensors files beside it, got {name!r}.")
    return found


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
