"""What lies beside an adapter file: notes of the site it came from, notes of its user, a picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

PICTURES: Final = (".preview.png", ".preview.jpg", ".preview.webp", ".png", ".jpg", ".jpeg", ".webp")
"""What a preview is called, after the adapter's name."""


@final
@dataclass(frozen=True, slots=True)
class Sidecars:
    """What the files beside an adapter say; where two say something, the user's own goes first."""

    title: str | None = None
    base: str | None = None
    words: tuple[str, ...] = ()
    """The words that call what the adapter teaches."""
    strength: float | None = None
    """The strength that its user likes."""
    note: str = ""
    preview: str | None = None
    """The path of a picture."""
    remarks: tuple[str, ...] = ()
    """Files that could not be read, and why."""


def read_sidecars(adapter: Path, names: frozenset[str]) -> Sidecars:
    """Read the files beside an adapter: `.json` as A1111 writes it, `.civitai.info` as Civitai's helpers do, pictures.

    Args:
        adapter: the path of its file.
        names: of all files in its folder.
    """
    stem, remarks = adapter.stem, []
    found: dict[str, Mapping[str, Any]] = {}
    for suffix in (".json", ".civitai.info"):
        if f"{stem}{suffix}" in names:
            try:
                found[suffix] = _read(adapter.with_name(f"{stem}{suffix}"))
            except (OSError, ValueError) as error:
                remarks.append(f"{stem}{suffix} cannot be read: {error}")
    user, site = found.get(".json", {}), found.get(".civitai.info", {})
    model = site.get("model")
    preview = next((f"{stem}{suffix}" for suffix in PICTURES if f"{stem}{suffix}" in names), None)
    return Sidecars(
        title=_text(model.get("name")) if isinstance(model, Mapping) else None,
        base=_text(user.get("sd version")) or _text(site.get("baseModel")),
        words=_words(user.get("activation text")) or _words(site.get("trainedWords")),
        strength=_number(user.get("preferred weight")),
        note=_text(user.get("notes")) or _text(user.get("description")) or "",
        preview=None if preview is None else str(adapter.with_name(preview)),
        remarks=tuple(remarks),
    )


def _read(path: Path) -> Mapping[str, Any]:
    found = json.loads(path.read_text("utf-8-sig"))
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, got {type(found).__name__}")
    return found


def _text(value: object) -> str | None:
    return value.strip() if isinstance(value, str) and value.strip() not in ("", "Unknown") else None


def _number(value: object) -> float | None:
    """A strength; A1111 writes 0 where its user has none."""
    return float(value) if isinstance(value, int | float) and value else None


def _words(value: object) -> tuple[str, ...]:
    listed: Iterable[object] = (
        value.split(",") if isinstance(value, str) else value if isinstance(value, list) else ()
    )
    return tuple(dict.fromkeys(word for one in listed if (word := (_text(one) or "").strip(" ,"))))
