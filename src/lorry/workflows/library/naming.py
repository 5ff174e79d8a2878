"""Which file of a folder a name in a prompt means."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, final

from lorry.errors import AdapterNotFoundError, did_you_mean, some

SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def adapter_files(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the files below a folder that may be adapters, in the order of their names; hidden ones are left out.

    Links to folders are followed, but those that lead back to a folder that they are in.

    Raises:
        AdapterNotFoundError: there is no such folder.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise AdapterNotFoundError(f"{folder}: there is no such folder. Expected a folder of adapter files.")
    real = {str(root): (root.resolve(),)}  # by folder: itself and those on the way to it, without links
    for here, folders, files in os.walk(root, followlinks=True):
        way = real.pop(str(Path(here)))
        inside = {name: Path(here, name).resolve() for name in sorted(folders) if not name.startswith(".")}
        folders[:] = [
            name for name, path in inside.items() if not any(one.is_relative_to(path) for one in way)
        ]
        real |= {str(Path(here, name)): (*way, inside[name]) for name in folders}
        yield from (
            Path(here, name) for name in sorted(files) if name.endswith(SUFFIXES) and not name.startswith(".")
        )


@final
@dataclass(frozen=True, eq=False, slots=True)
class AdapterNames:
    """Files by the names that prompts may call them: without suffix, with as many of their folders as wanted."""

    files: Mapping[str, tuple[Path, ...]]
    """{name in lower case: the files that answer to it}."""
    where: str
    """The place, for messages."""

    @classmethod
    def of_folder(cls, folder: str | os.PathLike[str]) -> Self:
        """Take the names of the files below a folder; nothing is read."""
        root = Path(folder).expanduser()
        return cls.of({_name(path.relative_to(root)): path for path in adapter_files(root)}, str(folder))

    @classmethod
    def of(cls, paths: Mapping[str, Path], where: str) -> Self:
        """Take files by name, with the folders before it: `{"styles/ink": …}` answers to `ink` too."""
        files: dict[str, list[Path]] = {}
        for name, path in paths.items():
            for ending in _endings(name.lower()):
                files.setdefault(ending, []).append(path)
        return cls({name: tuple(found) for name, found in files.items()}, where)

    def get(self, name: str) -> Path:
        """Return the file that a name means.

        Raises:
            AdapterNotFoundError: none does, or several do.
        """
        wanted = name.replace("\\", "/").strip("/").lower()
        found = self.files.get(wanted) or self.files.get(_name(Path(wanted)), ())
        if len(found) == 1:
            return found[0]
        if found:
            listed = some(map(str, found))
            raise AdapterNotFoundError(
                f"{name!r} means {len(found)} files in {self.where}: {listed}. Write the folder too: `folder/{name}`."
            )
        known = [ending for ending in self.files if "/" not in ending]
        listed = some(sorted(known), 8) or "no adapters"
        raise AdapterNotFoundError(
            f"There is no adapter {name!r} in {self.where}, which has {listed}.{did_you_mean(wanted, self.files)}"
        )


def _name(path: Path) -> str:
    """A path without the suffix of an adapter file; other dots are part of the name."""
    return path.with_suffix("").as_posix() if path.suffix in SUFFIXES else path.as_posix()


def _endings(name: str) -> Iterable[str]:
    parts = name.split("/")
    return ("/".join(parts[first:]) for first in range(len(parts)))
