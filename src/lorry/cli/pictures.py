"""Where pictures go: said before they are drawn, and written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from lorry.errors import FileError
from lorry.files import check_writable, replace_file


def kind_of(path: Path) -> str:
    """Return what Pillow calls the kind of picture that a file's name says.

    Raises:
        FileError: it says none that can be written.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise FileError(f"{path}: expected a picture's name, which ends in .png, .jpg or .webp.")
    return kind


def make_room(paths: Iterable[Path]) -> None:
    """Make the folders of pictures that are to be drawn.

    Raises:
        FileError: a folder cannot be made, or nothing can be written into it.
    """
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"{path}: its folder cannot be made: {error.strerror}.") from error
        check_writable(path)


def write_picture(picture: Image.Image, path: Path, **how: Any) -> None:
    """Write a picture; `how` is for Pillow.

    Raises:
        FileError: it cannot be written; nothing of it is left.
    """
    kind = kind_of(path)
    replace_file(path, lambda file: picture.save(file, kind, **how))
