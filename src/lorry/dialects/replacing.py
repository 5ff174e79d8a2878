"""What a new adapter file may be written over: an older adapter, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from lorry.dialects.registry import find_dialect
from lorry.errors import FileError, LorryError
from lorry.files import read_weights


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Raise when something is at `path` that is no adapter: a whole checkpoint, a picture, somebody's notes.

    An empty file may be replaced: there is nothing in it to lose.

    Raises:
        FileError: says what is there.
    """
    path = Path(path)
    if not os.path.lexists(path) or (path.is_file() and not path.stat().st_size):
        return
    try:
        is_adapter = find_dialect(read_weights(path, header_only=True)) is not None
    except LorryError:
        is_adapter = False
    if not is_adapter:
        raise FileError(
            f"{path} is there already and is no adapter, so that it is not overwritten. Choose another name, or delete "
            "it first."
        )
