"""From the names of adapters, in prompts and options, to their files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import final

from lorry.assets import lora_files
from lorry.cli.options import LoraChoice, find_adapter
from lorry.prompts import LoraTag
from lorry.workflows.library import AdapterNames


@final
@dataclass(frozen=True, slots=True)
class Use:
    """An adapter in one picture, by the tag that says how strongly."""

    tag: LoraTag
    source: str
    """A path on this machine; a Hub id only where an option, not a prompt, names the adapter."""
    said: str
    """The adapter as the user named it."""

    @property
    def strength(self) -> str:
        """What the tag says after the name."""
        return str(replace(self.tag, name="x"))[len("<lora:x:") : -1]


@final
class Shelf:
    """Where adapters are looked for."""

    def __init__(self, library: Path | None = None, files: Mapping[str, str] | None = None) -> None:
        """Look in a folder (among what lorry ships when None), and before that among `files` by name."""
        self._library = library
        self._files = files or {}
        self._taken: dict[str, str] = {}
        """{name: source} of what was found so far."""

    def named(self, tag: LoraTag) -> Use:
        """Find the adapter that a prompt names. Nothing that a prompt says leads to another machine.

        Raises:
            AdapterNotFoundError: there is no such adapter.
        """
        given = self._files.get(tag.name)
        path = self._taken[tag.name] = given or str(self._names.get(tag.name))
        return Use(tag, path, given or tag.name)

    @cached_property
    def _names(self) -> AdapterNames:
        if self._library is not None:
            return AdapterNames.of_folder(self._library)
        return AdapterNames.of(lora_files(), "what lorry ships (`--library FOLDER` says where yours are)")

    def chosen(self, choice: LoraChoice) -> Use:
        """Find the adapter that an option names; a Hub id is left for the loader.

        Raises:
            AdapterNotFoundError: there is no such adapter.
        """
        source, short = find_adapter(choice.source), _short(choice.source)
        name = short if self._taken.setdefault(short, source) == source else choice.source
        return Use(LoraTag(name, choice.scale), source, choice.source)

    def varied(self, name: str, scale: float) -> Use:
        """Find an adapter that is varied: what an option can name, or a name in the library.

        Raises:
            AdapterNotFoundError: there is no such adapter.
        """
        if self._library is not None and not Path(name).exists():
            return self.named(LoraTag(name, scale))
        return self.chosen(LoraChoice(name, scale))


def _short(source: str) -> str:
    """What a tag calls an adapter that an option names: its file's or repository's name."""
    path = Path(source)
    return path.stem if path.is_file() else re.sub(r".*[/\\]", "", source.rstrip("/\\"))
