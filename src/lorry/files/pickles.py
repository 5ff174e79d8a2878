"""Read torch pickles without letting them run code or take more memory than they have bytes; and write them."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from lorry.errors import AdapterNotFoundError, BrokenFileError, FileError
from lorry.files.replacing import replace_file
from lorry.files.tensor_file import TensorFile

NESTS = ("state_dict", "lora_state_dict", "weights", "module", "generator_lora")
"""Keys under which training frameworks hide the weights of a checkpoint."""
TEXTS = ("lora_config",)
"""What stands beside the weights and says how strong they are: Stable Audio 3's trainer has it in a header too."""
LIST_MARKER = "lorry.pickled_list"
"""Stands in the metadata of a pickle that held a bare list of tensors; its keys are their positions."""


def read_pickle(path: str | os.PathLike[str]) -> TensorFile:
    """Read a `.bin`, `.pt`, `.pth` or `.ckpt` file of tensors.

    Args:
        path: of the file.

    Returns:
        Its tensors on the CPU, unnested from `state_dict` and the like. Plain numbers become float64 tensors. A bare
        list comes back under "0", "1", …, with `LIST_MARKER` in the metadata; `TEXTS` are there as JSON.

    Raises:
        AdapterNotFoundError: there is no such file.
        BrokenFileError: it holds anything but tensors and numbers: code, objects, another kind of file such as a
            hypernetwork, or no pickle at all; or it unpacks to more than its own size.
    """
    source = os.fspath(path)
    size = _check_container(Path(path))
    content = _load(source)
    if other := _find_other_kind(content):
        raise BrokenFileError(f"{source} is {other}")
    text = _texts(content)
    for _ in NESTS:
        nest = next(
            (key for key in NESTS if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)),
            None,
        )
        content = content[nest] if nest else content
    if isinstance(content, list | tuple) and content:
        listed = {str(i): _tensor(value, str(i), source, size) for i, value in enumerate(content)}
        return TensorFile(listed, {LIST_MARKER: str(len(listed))}, source)
    if not isinstance(content, Mapping):
        raise _broken(source, "tensors by name, or a list of tensors", type(content).__name__)
    tensors = {_text(key, source): _tensor(value, key, source, size) for key, value in content.items()}
    return TensorFile(tensors, text, source)


def _texts(content: object) -> dict[str, str]:
    """Return what a checkpoint says beside its weights, as a header would."""
    if not isinstance(content, Mapping) or not any(nest in content for nest in NESTS):
        return {}
    said = {name: content[name] for name in TEXTS if isinstance(content.get(name), Mapping)}
    return {name: json.dumps(dict(value), default=str) for name, value in said.items()}


def write_pickle(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> Path:
    """Write tensors as a torch pickle, as `replace_file` does: whole or not at all.

    Returns:
        `path`.

    Raises:
        FileError: the file cannot be written.
    """
    return write_torch(path, dict(tensors))


def write_torch(path: str | os.PathLike[str], content: object) -> Path:
    """Write what torch can pickle, as `replace_file` does: whole or not at all.

    Returns:
        `path`.

    Raises:
        FileError: the file cannot be written.
    """

    def write(file: BinaryIO) -> None:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # so torch says that the end of its archive is not where it should be
            raise FileError(
                f"{path}: cannot be written whole: is the disk full? torch says: {error}"
            ) from error

    return replace_file(path, write)


def _check_container(path: Path) -> int:
    """Return the size of a file whose zip archive, where it is one, unpacks to no more than that."""
    if not path.is_file():
        reason = "it is no regular file" if path.exists() else "No such file or directory"
        raise AdapterNotFoundError(f"{path}: the file cannot be opened: {reason}.")
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
        except Exception as error:  # damaged archives raise what they like
            raise _broken(str(path), "a zip archive of torch", str(error) or type(error).__name__) from error
        if unpacked > size:  # torch stores and does not compress
            raise _broken(str(path), f"an archive of at most {size} bytes", f"one that unpacks to {unpacked}")
    return size


def _load(source: str) -> Any:
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n\n")[-1] if "GLOBAL" not in str(error) else _offender(str(error))
        raise _broken(source, "a pickle of nothing but tensors", reason) from error
    except Exception as error:  # a hostile stream makes the unpickler raise whatever it likes
        raise _broken(source, "a torch pickle", str(error) or type(error).__name__) from error


def _find_other_kind(content: object) -> str | None:
    """Say what a pickle is that is told by its structure and is no LoRA, or None."""
    if isinstance(content, Tensor):
        return "a single tensor without a name, as aesthetic gradients are, and no LoRA."
    if not isinstance(content, Mapping):
        return None
    if isinstance(content.get("string_to_param"), Mapping):
        return "a textual inversion embedding. Load it with `load_textual_inversion`."
    if isinstance(content.get("ip_adapter"), Mapping):
        return "an IP-Adapter. Load it with `load_ip_adapter`."
    if isinstance(content.get("id_encoder"), Mapping):
        return (
            "a PhotoMaker, whose LoRA is for an encoder of faces beside it, and which lorry does not apply."
        )
    if any(isinstance(key, int) and isinstance(value, list | tuple) for key, value in content.items()):
        return "a hypernetwork, which is no LoRA."
    return None


def _offender(message: str) -> str:
    after = message.split("GLOBAL ", 1)[1].split()
    return f"one that would run {after[0]}" if after else "one that would run code"


def _text(key: object, source: str) -> str:
    if not isinstance(key, str):
        raise _broken(source, "names as keys", repr(key))
    return key


def _tensor(value: object, key: object, source: str, size: int) -> Tensor:
    """Return a value as a plain tensor in memory; `size` is the most bytes that it may have."""
    if type(value) in (Tensor, nn.Parameter) and isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise _broken(source, f"a plain tensor under {key!r}", f"{value.layout} on {value.device}")
        if value.nbytes > size:  # a view that repeats what it has
            raise _broken(source, f"at most {size} bytes under {key!r}", f"{value.nbytes}")
        return value.detach()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return torch.tensor(float(value), dtype=torch.float64, device="cpu")
    raise _broken(source, f"a tensor under {key!r}", type(value).__name__)


def _broken(source: str, expected: str, got: str) -> BrokenFileError:
    return BrokenFileError(
        f"{source}: expected {expected}, got {got[:300]}. Lorry runs no code of a file: ask the author for a "
        "safetensors file, or convert it where you trust it."
    )
