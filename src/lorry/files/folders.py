"""Write an adapter as PEFT's folders: `adapter_model.safetensors` and `adapter_config.json` for each component."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lorry.errors import FileError
from lorry.files.finding import CONFIG_NAME
from lorry.files.hashes import rehashed
from lorry.files.reading import COMPONENT_FOLDERS, METADATA_KEY
from lorry.files.safetensors_writer import write_safetensors
from lorry.files.tensor_file import TensorFile

WEIGHTS_NAME = "adapter_model.safetensors"


def write_folders(path: str | os.PathLike[str], file: TensorFile) -> Path:
    """Write a folder with one of PEFT's folders for each component: the other way round of how they are read.

    The folder appears whole or not at all; one of that name that is there already is replaced, if it holds nothing else
    than such folders.

    Args:
        path: of the folder; the one it is in must be there.
        file: its keys preceded by their component, its configs under `lora_adapter_metadata` in the header. A hash of
            tensors in the header becomes that of each component's.

    Raises:
        FileError: the folder cannot be written, its place is a file's, or what is there holds something else.
    """
    path = Path(path)
    check_folder(path)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    old = draft.with_suffix(".old")
    try:
        draft.mkdir()
        for component, (tensors, config) in _by_component(file).items():
            folder = draft / component
            folder.mkdir()
            header = {key: value for key, value in file.metadata.items() if key != METADATA_KEY}
            write_safetensors(folder / WEIGHTS_NAME, tensors, rehashed(tensors, header))
            (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")
        if path.is_dir():
            path.rename(old)
        try:
            draft.rename(path)
        except BaseException:
            if old.is_dir():
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return path


def check_folder(path: str | os.PathLike[str]) -> None:
    """Raise when `write_folders` may not write at `path`: a folder there holds more than PEFT's folders.

    Raises:
        FileError: names a file that would be lost, or says that no folder can be there.
    """
    path = Path(path)
    if not path.name or path.is_symlink() or path.is_file() or not path.parent.is_dir():
        raise FileError(f"{path}: expected the place of a folder, in a folder that is there.")
    for found in path.rglob("*") if path.is_dir() else ():
        parts = found.relative_to(path).parts
        known = COMPONENT_FOLDERS if found.is_dir() else (WEIGHTS_NAME, CONFIG_NAME)
        if found.is_symlink() or found.name not in known or parts[0] not in (found.name, *COMPONENT_FOLDERS):
            raise FileError(
                f"{path} is there already and holds {Path(*parts)}, which is no part of PEFT's folders, so that it is "
                "not overwritten. Choose another name, or delete it first."
            )


def _by_component(file: TensorFile) -> Mapping[str, tuple[dict[str, Tensor], dict[str, Any]]]:
    found: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = {}
    for key, tensor in file.tensors.items():
        component, _, rest = key.partition(".")
        found.setdefault(component, ({}, {}))[0][rest] = tensor
    for name, value in json.loads(file.metadata.get(METADATA_KEY) or "{}").items():
        component, _, option = name.partition(".")
        if component in found:
            found[component][1][option] = value
    return found
