"""What an adapter file's header says, in types that a cache can hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, final

from lorry.adapters import Adapter
from lorry.binding.bases import titles_of_adapter
from lorry.dialects import read_adapter
from lorry.errors import FileError, FormatError
from lorry.files import TensorFile, read_weights
from lorry.workflows.original_layers import with_diffusers_names


@final
@dataclass(frozen=True, slots=True)
class Facts:
    """What a header says."""

    title: str | None = None
    dialect: str | None = None
    families: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    components: tuple[str, ...] = ()
    targets: int = 0
    base: str | None = None
    """The base model that its metadata say it is for."""
    made_for: str | None = None
    """The base model that the names and shapes of its layers are of."""
    words: tuple[str, ...] = ()
    likeness: str = ""
    """The same for files that may hold the same weights, whatever their dialects."""
    problem: str | None = None
    """Why lorry cannot apply the file, or knows nothing of it."""

    @classmethod
    def restored(cls, stored: Mapping[str, Any]) -> Self:
        """Make them of what JSON made of them.

        Raises:
            TypeError: it was something else.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(stored, dict) or stored.keys() - known:
            raise TypeError("no facts")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
        }
        return cls(**values)


def facts_of(path: Path) -> Facts:
    """Read a file's header. A pickle has none: it is read whole, tensors only, and its weights forgotten."""
    try:
        file = read_weights(path, header_only=True)
    except FileError as error:
        return Facts(problem=str(error))
    about: dict[str, Any] = {
        "title": _said(file, "modelspec.title"),
        "base": _base(file),
        "words": _words(file),
    }
    try:
        adapter = read_adapter(file)
    except FormatError as error:
        return Facts(**about, problem=str(error))
    deltas = [entry.delta for entry in adapter.entries]
    return Facts(
        **about,
        made_for=titles_of_adapter(adapter),
        dialect=adapter.dialect,
        families=tuple(sorted({delta.family for delta in deltas})),
        ranks=tuple(sorted({delta.rank for delta in deltas if delta.rank is not None})),
        components=adapter.components,
        targets=len(deltas),
        likeness=_likeness(adapter),
    )


def _said(file: TensorFile, *keys: str) -> str | None:
    return next((value for key in keys if (value := file.metadata.get(key, "").strip())), None)


def _base(file: TensorFile) -> str | None:
    return _said(file, "modelspec.architecture", "ss_base_model_version", "ss_sd_model_name", "base_model")


def _words(file: TensorFile) -> tuple[str, ...]:
    said = _said(file, "modelspec.trigger_phrase", "trigger_words", "trigger_word") or ""
    return tuple(word for one in said.split(",") if (word := one.strip()))


def _likeness(adapter: Adapter) -> str:
    deltas = [entry.delta for entry in with_diffusers_names(adapter).entries]
    sizes = [f"{delta.family} {sorted(t.numel() for t in delta.tensors().values())}" for delta in deltas]
    return digest(sorted(sizes))


def digest(words: Iterable[str]) -> str:
    """Return a hash of words in their order."""
    found = hashlib.sha256()
    for word in words:
        found.update(f"{word}\n".encode())
    return found.hexdigest()[:16]
