"""Checkpoint folders: there whole or not at all, and only for the run that they were made by."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor

from lorry.errors import CheckpointError, FileError
from lorry.files import read_safetensors, write_safetensors, write_torch

FOLDER: Final = "checkpoints"
_WEIGHTS, _STATE, _FACTS = "adapter.safetensors", "optimiser.pt", "facts.json"


@final
@dataclass(frozen=True, eq=False, slots=True)
class Checkpoint:
    """What a run needs to go on as if it had never stopped."""

    step: int
    """How many steps are done."""
    weights: Mapping[str, Tensor]
    """The adapter's parameters by component, path and field."""
    state: Mapping[str, Any]
    """Of the optimiser, of the moving average, of the loss scaling."""
    facts: Mapping[str, Any]
    """What must be the same in the run that goes on."""


def save_checkpoint(out: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint, then remove all but the newest `keep`.

    It is written into a folder of another name, which is renamed when all of it is on the disk. One of this step that
    is there already stays.

    Returns:
        Its folder.

    Raises:
        CheckpointError: it cannot be written; nothing of it is left.
    """
    folder = out / FOLDER / f"step-{checkpoint.step:08}"
    if folder.is_dir():
        return folder
    draft = folder.with_name(f".draft-{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        write_safetensors(draft / _WEIGHTS, checkpoint.weights)
        write_torch(draft / _STATE, dict(checkpoint.state))
        (draft / _FACTS).write_text(json.dumps(dict(checkpoint.facts), indent=2), encoding="utf-8")
        draft.rename(folder)
    except (FileError, OSError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise CheckpointError(
            f"The checkpoint of step {checkpoint.step} cannot be written: {error} Those before it are whole: make "
            f"room, and go on with `lorry train --resume {out}`."
        ) from error
    for old in _folders(out)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def find_checkpoint(out: Path) -> Checkpoint | None:
    """Return the newest checkpoint in the folder of a run, or None.

    Raises:
        CheckpointError: it cannot be read.
    """
    folders = _folders(out)
    if not folders:
        return None
    folder = folders[-1]
    try:
        return Checkpoint(
            step=int(folder.name.removeprefix("step-")),
            weights={key: t.clone() for key, t in read_safetensors(folder / _WEIGHTS).tensors.items()},
            state=torch.load(folder / _STATE, map_location="cpu", weights_only=True),
            facts=json.loads((folder / _FACTS).read_text(encoding="utf-8")),
        )
    except Exception as error:
        raise CheckpointError(
            f"{folder} cannot be read: {error} Remove this folder to go on from the checkpoint before it."
        ) from error


def check_same_run(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> None:
    """Raise when a run differs from the one that a checkpoint is of.

    Raises:
        CheckpointError: names the first thing that differs, with both values.
    """
    for name, now in facts.items():
        then = checkpoint.facts.get(name)
        if then != now:
            raise CheckpointError(
                f"The checkpoint at step {checkpoint.step} is of a run with another {name}: {_short(then)} there, "
                f"{_short(now)} here. Go on with what it had, or start a new run in another folder."
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _folders(out: Path) -> list[Path]:
    return sorted(path for path in (out / FOLDER).glob("step-*") if path.is_dir())
