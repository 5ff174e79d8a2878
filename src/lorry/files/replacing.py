"""Put a new file in the place of an old one: whole, or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lorry.errors import FileError


def replace_file(path: str | os.PathLike[str], write: Callable[[BinaryIO], None]) -> Path:
    """Write a file beside its place and move it there when all its bytes are on the disk.

    Whoever reads `path` meanwhile sees the old file or the new one. A process that is killed while it writes leaves the
    old one, and its draft beside it (`.name.….tmp`).

    Args:
        path: of the file; its folder must be there.
        write: puts the content into the open file it is given.

    Returns:
        `path`.

    Raises:
        FileError: there is no such folder, or the file cannot be written.
    """
    path = Path(path)
    with _draft_of(path) as draft:
        with draft.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        _sync_folder(path.parent)
    return path


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise now what `replace_file` would raise after long work; the disk is as it was.

    Raises:
        FileError: there is no such folder, or no file can be written there.
    """
    with _draft_of(Path(path)):
        pass


@contextmanager
def _draft_of(path: Path) -> Iterator[Path]:
    """Give an empty file beside the place of another; it goes when the context ends, unless it was moved.

    Raises:
        FileError: there is no such folder, or the context could not write.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        if not path.parent.is_dir():
            raise FileError(f"{path}: there is no folder {path.parent}. Make it first.")
        if path.is_dir():
            raise FileError(f"{path} is a folder: expected the path of a file to write.")
        draft.open("xb").close()
        yield draft
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror}.") from error
    finally:
        with suppress(OSError):  # a read-only file system says so of files that are not there, too
            draft.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Bring the new name itself onto the disk, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
