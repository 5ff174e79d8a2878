"""The index of a folder of adapters: headers only, read once, then from the cache."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from lorry.binding import size_of
from lorry.workflows.library.cache import Stamp, cache_file, load_cache, save_cache
from lorry.workflows.library.facts import Facts, facts_of
from lorry.workflows.library.naming import AdapterNames, adapter_files
from lorry.workflows.library.sidecars import Sidecars, read_sidecars
from lorry.workflows.progress import Progress, silent


@final
@dataclass(frozen=True, slots=True)
class LibraryEntry:
    """One adapter of a library."""

    name: str
    """What a prompt calls it: its path in the library, without the suffix."""
    path: str
    size: int
    """The bytes on disk."""
    facts: Facts
    """What its header says."""
    beside: Sidecars
    """What the files beside it say."""

    @property
    def title(self) -> str:
        """What people call it."""
        return self.beside.title or self.facts.title or self.name

    @property
    def base(self) -> str | None:
        """The base model that it is for, as its layers tell, else its header, else the files beside it."""
        return self.facts.made_for or self.facts.base or self.beside.base

    @property
    def words(self) -> tuple[str, ...]:
        """The words that call what it teaches, as the files beside it say, else its header."""
        return self.beside.words or self.facts.words

    @property
    def is_adapter(self) -> bool:
        """Whether lorry can apply it. What it cannot is listed with the reason: a VAE, a damaged file."""
        return self.facts.problem is None

    def matches(self, text: str) -> bool:
        """Whether every word of `text` is somewhere in what is known of it; upper and lower case are the same."""
        facts = self.facts
        bases = filter(None, (facts.made_for, facts.base, self.beside.base))
        said = (
            *bases,
            *facts.families,
            *facts.components,
            facts.dialect or "",
            *self.words,
            self.beside.note,
        )
        known = " ".join((self.name, self.title, *said)).lower()
        return all(word in known for word in text.lower().split())

    def as_dict(self) -> dict[str, Any]:
        """The entry in types that JSON has."""
        return {**asdict(self), "title": self.title, "base": self.base, "words": list(self.words)}

    def __str__(self) -> str:
        facts = self.facts
        if facts.problem is not None and not facts.targets:
            return f"{self.name}: {facts.problem}"
        ranks = (
            f"rank {facts.ranks[0]}" + (f" to {facts.ranks[-1]}" if len(facts.ranks) > 1 else "")
            if facts.ranks
            else ""
        )
        kind = " ".join(filter(None, ("+".join(facts.families), ranks)))
        words = f"words: {', '.join(self.words)}" if self.words else ""
        title = self.title if self.title != self.name else ""
        return f"{self.name}: " + ", ".join(
            filter(None, (title, self.base, kind, "+".join(facts.components), size_of(self.size), words))
        )


@final
@dataclass(frozen=True, eq=False, slots=True)
class Library:
    """The adapters of a folder."""

    folder: str
    entries: tuple[LibraryEntry, ...]
    """By name, with what may be an adapter by its name and is none."""
    read: int
    """How many headers were read; the others were known."""

    def names(self) -> AdapterNames:
        """Return which file a name means."""
        return AdapterNames.of({entry.name: Path(entry.path) for entry in self.entries}, self.folder)

    def search(self, text: str) -> tuple[LibraryEntry, ...]:
        """Return the adapters that every word of `text` is said of."""
        return tuple(entry for entry in self.entries if entry.matches(text))


def scan_library(
    folder: str | os.PathLike[str],
    *,
    cache: Path | None = None,
    again: bool = False,
    progress: Progress = silent,
    read: Callable[[Path], Facts] = facts_of,
) -> Library:
    """List the adapters below a folder. No weights are read, and of files that have not changed no header either.

    Args:
        folder: of the adapters; folders in it are looked into, hidden ones are not.
        cache: the file that keeps what was read; the user's own (`cache_file`) when None.
        again: read every header, known or not.
        progress: told how far it is.
        read: reads one header.

    Raises:
        AdapterNotFoundError: there is no such folder.
    """
    root, cache = Path(folder).expanduser().absolute(), cache or cache_file()
    known = load_cache(cache)
    stamps = {path: _stamp(path) for path in adapter_files(root)}
    new = [path for path, stamp in stamps.items() if again or known.get(str(path), (None,))[0] != stamp]
    found = {str(path): (stamps[path], read(path)) for path in progress(new, "reading headers")}
    present = set(map(str, stamps))
    kept = {
        name: one for name, one in known.items() if name in present or not Path(name).is_relative_to(root)
    }
    facts = {**kept, **found}
    if found or len(kept) < len(known):
        save_cache(cache, facts)
    entries = tuple(
        LibraryEntry(
            name=path.relative_to(root).with_suffix("").as_posix(),
            path=str(path),
            size=stamps[path][1],
            facts=facts[str(path)][1],
            beside=read_sidecars(path, names),
        )
        for path, names in _with_neighbours(stamps)
    )
    return Library(str(folder), entries, len(new))


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:  # a link that leads nowhere, or a file that has just gone: reading it says so
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _with_neighbours(files: Iterable[Path]) -> Iterator[tuple[Path, frozenset[str]]]:
    """Yield each file, and the names of all files of its folder."""
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        folders[path.parent].append(path)
    for folder, paths in folders.items():
        names = frozenset(path.name for path in folder.iterdir())
        yield from ((path, names) for path in paths)
