"""Facts that were read before, in one file of the user's: read again only where a file has changed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Final

from lorry.errors import FileError
from lorry.files import replace_file
from lorry.workflows.library.facts import Facts

VERSION: Final = 2
"""Of the facts' meaning: a cache of another one is not used."""
Stamp = tuple[int, int]
"""A file's time of change in nanoseconds, and its size."""


def cache_file() -> Path:
    """Return where the facts are kept: `$LORRY_CACHE`, `$XDG_CACHE_HOME/lorry` or `~/.cache/lorry`."""
    folder = os.environ.get("LORRY_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder or Path(home) / "lorry").expanduser() / "library.json"


def load_cache(path: Path) -> dict[str, tuple[Stamp, Facts]]:
    """Return the facts by path; nothing where the file is not there, damaged, or of another version."""
    try:
        stored = json.loads(path.read_text("utf-8"))
        if stored["version"] != VERSION:
            return {}
        return {
            name: ((int(one["mtime"]), int(one["size"])), Facts.restored(one["facts"]))
            for name, one in stored["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def save_cache(path: Path, facts: Mapping[str, tuple[Stamp, Facts]]) -> None:
    """Write the facts, whole or not at all. A cache that cannot be written is none: everything works without it."""
    files: dict[str, Any] = {
        name: {"mtime": stamp[0], "size": stamp[1], "facts": asdict(found)}
        for name, (stamp, found) in facts.items()
    }
    text = json.dumps({"version": VERSION, "files": files}, ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )

    def write(file: BinaryIO) -> None:
        file.write(text)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, write)
    except (OSError, FileError):
        return
