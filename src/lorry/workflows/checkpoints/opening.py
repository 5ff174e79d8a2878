"""From a path to the checkpoint that it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lorry.dialects import find_dialect
from lorry.errors import AdapterNotFoundError, FormatError, some
from lorry.files import PickleReader, TensorFile, TensorReader
from lorry.names import DENOISERS, TEXT_ENCODERS
from lorry.workflows.checkpoints.checkpoint import CLIP_ROOT, Checkpoint, Place
from lorry.workflows.checkpoints.single_file import sort_single_file

WEIGHTS = ("diffusion_pytorch_model", "model")
"""What diffusers and transformers call the weights in a component's folder."""
SAFE = ".safetensors"


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a pipeline's folder, a component's folder, or a single-file checkpoint. Only headers are read.

    Args:
        path: of the folder or of the file. A pickle (`.ckpt`, `.pt`) has no header: it is read whole, tensors only.

    Raises:
        AdapterNotFoundError: there is no such file or folder, or no weights in it.
        BrokenFileError: a header does not describe its file, or a pickle holds more than tensors and numbers.
        FormatError: the file is an adapter.
    """
    source = Path(path).expanduser()
    if source.is_dir():
        return _open_folder(source)
    if not source.is_file():
        raise AdapterNotFoundError(f"{source}: there is no such checkpoint: expected a folder or a file.")
    with ExitStack() as stack:
        reader = stack.enter_context(TensorReader(source) if source.suffix == SAFE else PickleReader(source))
        _check_is_no_adapter(reader.outline)
        components, classes = sort_single_file(source, reader.outline.tensors)
        stack.pop_all()
    return Checkpoint(source, components, classes, {source: reader})


def _check_is_no_adapter(file: TensorFile) -> None:
    dialect = find_dialect(file)
    if dialect is not None:
        raise FormatError(
            f"{file.source} is an adapter ({dialect.name}), expected a checkpoint: a base model, as file or folder."
        )


def _open_folder(source: Path) -> Checkpoint:
    folders = {name: source / name for name in (*DENOISERS, *TEXT_ENCODERS) if (source / name).is_dir()}
    alone = None if folders else _component_name(source)
    if alone:
        folders = {alone: source}
    components: dict[str, dict[str, Place]] = {}
    readers: dict[Path, TensorReader] = {}
    with ExitStack() as stack:
        for name, folder in folders.items():
            for file in _weight_files(folder):
                readers[file] = stack.enter_context(TensorReader(file))
                keys = readers[file].outline.tensors
                found = {key.removeprefix(CLIP_ROOT): Place(file, (key,)) for key in keys}
                components.setdefault(name, {}).update(found)
        if not components:
            raise AdapterNotFoundError(
                f"{source}: no weights in it. Expected a pipeline's folder, with {' or '.join(DENOISERS[:2])} and text "
                f"encoders in folders below, or one of those."
            )
        stack.pop_all()
    classes = {name: found for name, folder in folders.items() if (found := _class_name(folder))}
    return Checkpoint(source, components, classes, readers)


def _weight_files(folder: Path) -> Iterable[Path]:
    """Return the files of a component's weights, without the copies in other dtypes (variants) beside them."""
    for stem in WEIGHTS:
        index = folder / f"{stem}{SAFE}.index.json"
        if index.is_file():
            return sorted(
                {folder / name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()}
            )
        if (folder / f"{stem}{SAFE}").is_file():
            return [folder / f"{stem}{SAFE}"]
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (SAFE, ".bin"))
    if len(others) == 1 and others[0].endswith(SAFE):
        return [folder / others[0]]
    listed = some(others) if others else "no weights"
    raise AdapterNotFoundError(
        f"{folder}: expected {' or '.join(stem + SAFE for stem in WEIGHTS)}, found {listed}."
    )


def _class_name(folder: Path) -> str | None:
    config = folder / "config.json"
    found: dict[str, Any] = json.loads(config.read_text("utf-8")) if config.is_file() else {}
    return found.get("_class_name") or next(iter(found.get("architectures") or ()), None)


def _component_name(folder: Path) -> str | None:
    name = _class_name(folder) or ""
    if "UNet" in name:
        return "unet"
    if "Transformer" in name:
        return "transformer"
    return "text_encoder" if name.startswith(("CLIP", "T5", "UMT5")) else None
