"""The folder of a run: it belongs to one run, which is written down in it."""

from __future__ import annotations

from typing import Final

from lorry.errors import CheckpointError
from lorry.training.checkpoints import Checkpoint, find_checkpoint
from lorry.training.processes import Process

SETTINGS: Final = "settings.toml"


def claim_folder(process: Process, *, resume: bool) -> Checkpoint | None:
    """Begin a run in a folder, or find where the one in it is to go on.

    A run that goes on has its settings written when they are known to fit its checkpoint (`write_settings`).

    Returns:
        Where to go on from; None at the beginning.

    Raises:
        CheckpointError: there is a run in it, and it is not to go on; or its checkpoint cannot be read.
    """
    out, checkpoint = process.out, find_checkpoint(process.out)
    if resume and checkpoint is None:
        process.watcher.note("There is no checkpoint yet: the run begins at step 0.")
    if not resume and checkpoint is not None:
        raise CheckpointError(
            f"{out} holds a run that is at step {checkpoint.step}. Go on with `lorry train --resume {out}`, or choose "
            "another folder."
        )
    if checkpoint is None:
        write_settings(process)
    process.wait()
    return checkpoint


def write_settings(process: Process) -> None:
    """Write a run's settings into its folder."""
    if process.is_main:
        draft = process.out / f".{SETTINGS}"
        draft.write_text(process.settings.written(), encoding="utf-8")
        draft.replace(process.out / SETTINGS)
