"""What reading a file came to, for the next one that differs in its weights alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final
from weakref import WeakKeyDictionary

from lorry.adapters import Adapter, Form
from lorry.files import Spans, TensorFile

KEPT = 4
"""How many forms are kept of one layout: the same keys may mean different things by other metadata."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class _Known:
    """The form of a file, and all that it depends on besides the layout."""

    form: Form
    consulted: Mapping[str, str | None]
    """The text that was looked at, None where there was none."""
    count: int | None
    """How many pieces of text it has, where that was looked at."""
    numbers: tuple[float, ...]
    """The values of the tensors of one element, which alone are looked at while reading."""
    config: Mapping[str, object] | None

    def fits(self, file: TensorFile, numbers: tuple[float, ...]) -> bool:
        same_text = all(file.metadata.get(key) == text for key, text in self.consulted.items())
        same_count = self.count is None or self.count == len(file.metadata)
        return same_text and same_count and self.numbers == numbers and self.config == file.config


_known: WeakKeyDictionary[Spans, tuple[_Known, ...]] = WeakKeyDictionary()


@final
class Watched(Mapping[str, str]):
    """A file's text, which remembers what of it was looked at."""

    def __init__(self, text: Mapping[str, str]) -> None:
        self._text = text
        self.consulted: dict[str, str | None] = {}
        self.count: int | None = None
        """How many pieces it has, where somebody counted or went through them all."""

    def __getitem__(self, key: str) -> str:
        self.consulted[key] = self._text.get(key)
        return self._text[key]

    def __iter__(self) -> Iterator[str]:
        for key in self._text:
            self.consulted[key] = self._text[key]
            yield key
        self.count = len(self._text)

    def __len__(self) -> int:
        self.count = len(self._text)
        return self.count


def find_known(file: TensorFile) -> Adapter | None:
    """Return the adapter in a file whose like was read before, or None. Its numbers may still be read."""
    known = () if file.spans is None else _known.get(file.spans, ())
    if not known:
        return None
    numbers = _numbers(file)
    form = next((one.form for one in known if one.fits(file, numbers)), None)
    if form is None:
        return None
    return form.filled(file.tensors, file.metadata, file.source, file.arrived, file.block)


def remember(file: TensorFile, adapter: Adapter, text: Watched) -> None:
    """Keep the form of an adapter that was read from a file, where the next one can be filled in from it."""
    form = Form.of(adapter, file.tensors)
    if form is not None and file.spans is not None:
        one = _Known(form, text.consulted, text.count, _numbers(file), file.config)
        _known[file.spans] = (one, *_known.get(file.spans, ())[: KEPT - 1])


def _numbers(file: TensorFile) -> tuple[float, ...]:
    keys = file.spans.numbers if file.spans else ()
    if keys:
        file.arrived()
    return tuple(file.tensors[key].item() for key in keys)
