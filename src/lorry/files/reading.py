"""From what a user names to its tensors: find, read, and the config beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lorry.errors import BrokenFileError
from lorry.files._choice import PICKLES, SAFE
from lorry.files._layout import LENGTH_BYTES
from lorry.files._shards import is_index, read_parts, without_parts
from lorry.files.finding import CONFIG_NAME, find_weights
from lorry.files.pickles import read_pickle
from lorry.files.safetensors_reader import read_header, read_safetensors
from lorry.files.tensor_file import TensorFile

COMPONENT_FOLDERS = (
    "unet",
    "transformer",
    "transformer_2",
    "transformer_ref",
    "prior",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "text_encoder_4",
    "text_conditioner",
    "connectors",
    "duration_embedder",
)
"""Folders that training scripts give to PEFT, one for each model of a pipeline."""
METADATA_KEY = "lora_adapter_metadata"
"""Where a header keeps the configs of several components, under `unet.r` and so on. Source: huggingface/diffusers,
`loaders/lora_base.py`, `LORA_ADAPTER_METADATA_KEY`."""


def read_adapter_file(
    pretrained: str | os.PathLike[str],
    *,
    header_only: bool = False,
    into_memory: bool = False,
    early: bool = False,
    **kwargs: Any,
) -> TensorFile:
    """Find and read an adapter's file.

    A folder that holds PEFT folders by component (`unet/`, `text_encoder/`) is read as one file, its keys preceded by
    the folder's name; so is one of them alone.

    Args:
        pretrained: a file, a folder, or the id of a repository of the Hub.
        header_only: leave the weights of safetensors files on the disk; see `read_header`.
        into_memory: read them into memory of their own; see `read_safetensors`.
        early: return while they are still read, where it is one file.
        kwargs: those of `find_weights`.

    Returns:
        Its tensors, with the `adapter_config.json` that belongs to them.

    Raises:
        AdapterNotFoundError: there is no such adapter.
        BrokenFileError: the file cannot be read.
    """
    how = {"header_only": header_only, "into_memory": into_memory}
    folders = _component_folders(pretrained, kwargs)
    if folders:
        files = {name: read_weights(path, **how) for name, path in folders.items()}
        return _joined(os.fspath(pretrained), files)
    path = find_weights(pretrained, **kwargs)
    file = read_weights(path, **how, early=early)
    if file.config is not None and path.parent.name in COMPONENT_FOLDERS:
        return _joined(file.source, {path.parent.name: file.whole()})
    return file


def read_weights(
    path: str | os.PathLike[str],
    *,
    header_only: bool = False,
    into_memory: bool = False,
    early: bool = False,
) -> TensorFile:
    """Read a file of tensors, whatever container it is in, with the `adapter_config.json` that belongs to it.

    Args:
        path: of the file, or of the index of a file in several parts, which are read as one.
        header_only: leave the weights of a safetensors file on the disk; see `read_header`.
        into_memory: read them into memory of their own; see `read_safetensors`.
        early: return while they are still read, where it is one file.

    Raises:
        AdapterNotFoundError: there is no such file, or no such part.
        BrokenFileError: it is neither a safetensors file nor a pickle of tensors.
    """
    path = Path(path)
    read = read_header if header_only else partial(read_safetensors, into_memory=into_memory)
    if is_index(path):
        return replace(read_parts(path, read), config=_config(path))
    if path.suffix in SAFE or _looks_safe(path):
        found = read(path) if header_only else read_safetensors(path, into_memory=into_memory, early=early)
    elif path.suffix in PICKLES:
        found = read_pickle(path)
    else:
        raise BrokenFileError(f"{path}: expected a file that ends in {', '.join((*SAFE, *PICKLES))}.")
    return replace(found, config=_config(path))


def _looks_safe(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(LENGTH_BYTES + 1)
    return (
        start[LENGTH_BYTES:] == b"{" and int.from_bytes(start[:LENGTH_BYTES], "little") < path.stat().st_size
    )


def _config(weights: Path) -> Mapping[str, object] | None:
    config = weights.with_name(CONFIG_NAME)
    if not config.is_file() or not _owns_config(weights):
        return None
    try:
        parsed = json.loads(config.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BrokenFileError(f"{config}: expected JSON, got: {error}.") from error
    if not isinstance(parsed, dict):
        raise BrokenFileError(f"{config}: expected a JSON object, got {type(parsed).__name__}.")
    return parsed


def _owns_config(weights: Path) -> bool:
    names = [path.name for path in weights.parent.iterdir()]
    others = [n for n in without_parts(names) if n.endswith((*SAFE, *PICKLES)) and n != weights.name]
    return weights.name.startswith("adapter_model.") or not others


def _component_folders(pretrained: str | os.PathLike[str], kwargs: Mapping[str, Any]) -> dict[str, Path]:
    folder = Path(pretrained).expanduser() / (kwargs.get("subfolder") or "")
    if (
        kwargs.get("weight_name")
        or not folder.is_dir()
        or any(p.suffix in (*SAFE, *PICKLES) for p in folder.iterdir())
    ):
        return {}
    inside = [name for name in COMPONENT_FOLDERS if (folder / name / CONFIG_NAME).is_file()]
    return {
        name: find_weights(folder / name, use_safetensors=kwargs.get("use_safetensors")) for name in inside
    }


def _joined(source: str, files: Mapping[str, TensorFile]) -> TensorFile:
    tensors: dict[str, Tensor] = {}
    configs: dict[str, object] = {}
    for component, file in files.items():
        tensors.update({f"{component}.{key}": tensor for key, tensor in file.tensors.items()})
        configs.update({f"{component}.{key}": value for key, value in (file.config or {}).items()})
    text = {key: value for file in files.values() for key, value in file.metadata.items()}
    return TensorFile(tensors, {**text, METADATA_KEY: json.dumps(configs)}, source)
