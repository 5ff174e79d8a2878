"""The layout of a safetensors file: its header, checked in full before a single tensor is made.

Source: huggingface/safetensors, `README.md` (section "Format") and `safetensors/src/tensor.rs`.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, NoReturn, Self, final

import torch

from lorry.errors import BrokenFileError

LENGTH_BYTES = 8
MAX_HEADER = 100_000_000
"""The reference reader's own limit, in bytes: a longer header is an attack or no safetensors file."""

MAX_BRACKETS = 1_000_000
"""The most objects and lists that a header may have; a tensor takes three. Parsed, each is a hundred bytes and more: a
header of two-byte lists would take fifty times its own size."""
KEPT, MAX_KEPT = 16, 1_000_000
"""How many headers are kept in memory, and of how many characters at most."""
MAX_AXES = 8
MAX_NUMBER = 2**63 - 1
"""The most rows, columns or bytes that torch can count."""

DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}


class Span(NamedTuple):
    """A tensor's place in the data that follows the header."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class Columns(NamedTuple):
    """Tensors of one dtype, each at a multiple of its width, by what they have: their views are made all at once."""

    dtype: torch.dtype
    keys: list[str]
    shapes: list[tuple[int, ...]]
    strides: list[tuple[int, ...]]
    starts: list[int]
    """In numbers, not in bytes."""

    @classmethod
    def of(cls, dtype: torch.dtype, spans: Sequence[Span]) -> Self:
        """Sort out spans of tensors of `dtype`."""
        shapes = [span.shape for span in spans]
        starts = [span.start // dtype.itemsize for span in spans]
        return cls(dtype, [span.key for span in spans], shapes, [*map(_strides, shapes)], starts)


@final
@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Spans:
    """Where all tensors of a file lie. Files of the same keys and shapes share one."""

    each: Sequence[Span]
    nbytes: int
    """Of the data that they fill without gap or overlap."""
    numbers: Sequence[str]
    """The keys of the tensors of one element."""
    columns: Sequence[Columns]
    """By dtype."""
    others: Sequence[Span]
    """Those in no columns: empty ones, and those that do not begin at a multiple of their width."""

    @classmethod
    def of(cls, each: Sequence[Span]) -> Self:
        """Check that tensors lie side by side, and sort them out."""
        by_dtype: dict[torch.dtype, list[Span]] = {}
        others: list[Span] = []
        for span in each:
            is_empty, is_between = span.start == span.stop, span.start % span.dtype.itemsize
            (others if is_empty or is_between else by_dtype.setdefault(span.dtype, [])).append(span)
        numbers = [span.key for span in each if span.stop - span.start == span.dtype.itemsize]
        columns = [Columns.of(dtype, spans) for dtype, spans in by_dtype.items()]
        return cls(each, _filled_bytes(each), numbers, columns, others)


@final
@dataclass(frozen=True, slots=True)
class Layout:
    """A whole header."""

    table: Spans
    metadata: dict[str, str]
    data_start: int
    """The byte of the file at which the data begins."""

    @property
    def spans(self) -> Sequence[Span]:
        """Where each tensor lies, in the order of the header."""
        return self.table.each


def header_length(first_bytes: bytes, file_size: int, source: str) -> int:
    """Return the header's length from the first eight bytes of a file.

    Raises:
        BrokenFileError: the file is too short to hold the header it announces.
    """
    if len(first_bytes) < LENGTH_BYTES:
        raise _broken(source, "the first 8 bytes", "the header's length", f"{file_size} bytes in all", _AGAIN)
    length = int.from_bytes(first_bytes, "little")
    if length > min(MAX_HEADER, file_size - LENGTH_BYTES):
        expected = f"a header of at most {min(MAX_HEADER, file_size - LENGTH_BYTES)} bytes"
        raise _broken(source, "the first 8 bytes", expected, f"{length}", _what_it_is(first_bytes) or _AGAIN)
    return length


def parse_header(header: bytes, file_size: int, source: str) -> Layout:
    """Return the layout that a header describes.

    Args:
        header: the JSON after the first eight bytes.
        file_size: of the whole file, which the tensors must fill without gap or overlap.
        source: the file, for messages.

    Raises:
        BrokenFileError: says which tensor lies, what was expected and what was found.
    """
    try:
        return _parse(header, file_size - LENGTH_BYTES - len(header))
    except _LieError as lie:
        raise _broken(source, *lie.args) from lie.__cause__


class _LieError(Exception):
    """What a header says wrong: where, what was expected, what was found, and what to do."""


def _parse(header: bytes, data_size: int) -> Layout:
    brackets = header.count(b"{") + header.count(b"[")
    if brackets > MAX_BRACKETS:
        raise _LieError("the header", f"at most {MAX_BRACKETS} objects and lists", brackets, _TOOL)
    try:
        first, rest = _split(header.decode("utf-8").rstrip(" "))
        table, other = (_read if len(rest) > MAX_KEPT else _read_once)(rest)
        if len(first + other) > 1:
            raise ValueError("the key '__metadata__' twice")
    except (ValueError, RecursionError) as error:
        raise _LieError("the header", "UTF-8 JSON", str(error)[:200], _AGAIN) from error
    metadata = _checked_metadata(next(iter(first + other), {}))
    if table.nbytes != data_size:
        raise _LieError("the data", f"{table.nbytes} bytes", data_size, _AGAIN)
    return Layout(table, metadata, LENGTH_BYTES + len(header))


def _split(text: str) -> tuple[list[object], str]:
    """Return the metadata that a header begins with, as most do, and the header without it; none where it does not."""
    if not text.startswith(_METADATA):
        return [], text
    metadata, end = _DECODER.raw_decode(text, len(_METADATA) - 1)
    if text[end : end + 2] == ',"':
        return [metadata], "{" + text[end + 1 :]
    return ([metadata], "{" + text[end:]) if text[end : end + 1] == "}" else ([], text)


def _read(text: str) -> tuple[Spans, list[object]]:
    """Return what a header says of its tensors, and the metadata that stands among them."""
    parsed = _DECODER.decode(text)
    if not isinstance(parsed, dict):
        raise _LieError("the header", "a JSON object", type(parsed).__name__, _AGAIN)
    metadata = [parsed.pop("__metadata__")] if "__metadata__" in parsed else []
    _check_text(parsed)
    spans = [_span(key, description) for key, description in parsed.items()]
    return Spans.of(spans), metadata


_read_once = functools.lru_cache(maxsize=KEPT)(_read)
"""Files of one trainer say the same of their tensors: what the last few headers say is kept."""


_OTHERS = {
    b"<": "This is a web page. Download the file itself; some sites want a token for that.",
    b'{"': "This is a message in JSON, as sites send in place of a file. Download it again; some sites want a token.",
    b"version ": "This is a Git LFS pointer, which stands for the file. Run `git lfs pull` where it came from.",
    b"PK": "This is a zip archive. Unpack it; or, where it is a pickle of torch, let its name end in `.pt`.",
    b"\x1f\x8b": "This is compressed by gzip. Unpack it.",
    b"\x80": "This is a pickle. Let its name end in `.pt`.",
}
"""What a file begins with that is something else: none is the length of a header, which has four zeros at its end."""


def _what_it_is(first_bytes: bytes) -> str:
    if not any(first_bytes[4:]):
        return ""
    start = first_bytes.lstrip(b" \t\r\n")
    return next((said for begin, said in _OTHERS.items() if start.startswith(begin)), "")


_AGAIN = "Download or copy the file again; it is cut off, or no safetensors file."
_TOOL = "The tool that wrote the file is at fault; ask its author for another copy."


def _broken(source: str, where: str, expected: object, got: object, next_step: str) -> BrokenFileError:
    return BrokenFileError(f"{source}: {where}: expected {expected}, got {got}. {next_step}")


def _no_duplicates(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:80]!r} twice")
    return found


def _no_constants(constant: str) -> NoReturn:
    raise ValueError(f"the constant {constant}")


_DECODER = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
_METADATA = '{"__metadata__":{'


def _checked_metadata(found: object) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise _LieError("`__metadata__`", "text under every key", repr(found)[:80], _TOOL)
    _check_text(found)
    _check_text(found.values())
    return dict(found)


def _check_text(words: Iterable[str]) -> None:
    """Raise where an escape has made text of half a character (a lone surrogate), which nobody can print or write."""
    try:
        "".join(words).encode()
    except UnicodeEncodeError as error:
        raise _LieError("the header", "UTF-8 text", str(error)[:80], _TOOL) from error


def _span(key: str, found: Any) -> Span:
    try:
        name, shape, (start, stop) = found["dtype"], found["shape"], found["data_offsets"]
        if not (
            type(name) is str and type(shape) is list and type(start) is type(stop) is int and start >= 0
        ):
            raise TypeError
    except (KeyError, TypeError, ValueError):
        raise _LieError(f"`{key}`", "dtype, shape and two data_offsets", repr(found)[:80], _TOOL) from None
    if name not in DTYPES:
        raise _LieError(f"`{key}`", f"a dtype of {', '.join(DTYPES)}", repr(name), _TOOL)
    dtype = DTYPES[name]
    if len(shape) > MAX_AXES or not all(type(size) is int and 0 <= size <= MAX_NUMBER for size in shape):
        expected = f"a shape of at most {MAX_AXES} whole numbers, each at most {MAX_NUMBER}"
        raise _LieError(f"`{key}`", expected, repr(shape)[:80], _TOOL)
    if 0 in shape and prod(filter(None, shape)) > MAX_NUMBER // dtype.itemsize:
        raise _LieError(f"`{key}`", f"strides of at most {MAX_NUMBER}", shape, _TOOL)
    if stop - start != prod(shape) * dtype.itemsize:
        expected = f"{prod(shape) * dtype.itemsize} bytes for {name} {shape}"
        raise _LieError(f"`{key}`", expected, f"bytes {start} to {stop}", _TOOL)
    return Span(key, dtype, tuple(shape), start, stop)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _filled_bytes(spans: Iterable[Span]) -> int:
    """Return how many bytes the tensors fill, which must lie side by side."""
    at = 0
    for span in sorted(spans, key=lambda span: (span.start, span.stop)):
        if span.start != at:
            what = "overlaps the tensor before it" if span.start < at else "leaves a hole before it"
            raise _LieError(f"`{span.key}` {what}", f"a start at byte {at}", span.start, _TOOL)
        at = span.stop
    return at
