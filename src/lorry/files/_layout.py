"""The layout of a safetensors file: its header, checked in full before a single tensor is made.

Source: huggingface/safetensors, `README.md` (section "Format") and `safetensors/src/tensor.rs`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, NoReturn, final

import torch

from lorry.errors import BrokenFileError

LENGTH_BYTES = 8
MAX_HEADER = 100_000_000
"""The reference reader's own limit, in bytes: a longer header is an attack or no safetensors file."""

MAX_BRACKETS = 1_000_000
"""The most objects and lists that a header may have; a tensor takes three. Parsed, each is a hundred bytes and more: a
header of two-byte lists would take fifty times its own size."""
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


@final
@dataclass(frozen=True, slots=True)
class Layout:
    """A whole header."""

    spans: list[Span]
    metadata: dict[str, str]
    data_start: int
    """The byte of the file at which the data begins."""


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
    brackets = header.count(b"{") + header.count(b"[")
    if brackets > MAX_BRACKETS:
        raise _broken(source, "the header", f"at most {MAX_BRACKETS} objects and lists", brackets, _TOOL)
    try:
        parsed = json.loads(
            header.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constants
        )
    except (ValueError, RecursionError) as error:
        raise _broken(source, "the header", "UTF-8 JSON", str(error)[:200], _AGAIN) from error
    if not isinstance(parsed, dict):
        raise _broken(source, "the header", "a JSON object", type(parsed).__name__, _AGAIN)
    metadata = _metadata(parsed.pop("__metadata__", {}), source)
    for words in (parsed, metadata, metadata.values()):
        _check_text(words, source)
    spans = [_span(key, description, source) for key, description in parsed.items()]
    _check_spans(spans, file_size - LENGTH_BYTES - len(header), source)
    return Layout(spans, metadata, LENGTH_BYTES + len(header))


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


def _metadata(found: object, source: str) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise _broken(source, "`__metadata__`", "text under every key", repr(found)[:80], _TOOL)
    return found


def _check_text(words: Iterable[str], source: str) -> None:
    """Raise where an escape has made text of half a character (a lone surrogate), which nobody can print or write."""
    try:
        "".join(words).encode()
    except UnicodeEncodeError as error:
        raise _broken(source, "the header", "UTF-8 text", str(error)[:80], _TOOL) from error


def _span(key: str, found: Any, source: str) -> Span:
    try:
        name, shape, (start, stop) = found["dtype"], found["shape"], found["data_offsets"]
        if not (
            type(name) is str and type(shape) is list and type(start) is type(stop) is int and start >= 0
        ):
            raise TypeError
    except (KeyError, TypeError, ValueError):
        expected = "dtype, shape and two data_offsets"
        raise _broken(source, f"`{key}`", expected, repr(found)[:80], _TOOL) from None
    if name not in DTYPES:
        raise _broken(source, f"`{key}`", f"a dtype of {', '.join(DTYPES)}", repr(name), _TOOL)
    dtype = DTYPES[name]
    if len(shape) > MAX_AXES or not all(type(size) is int and 0 <= size <= MAX_NUMBER for size in shape):
        expected = f"a shape of at most {MAX_AXES} whole numbers, each at most {MAX_NUMBER}"
        raise _broken(source, f"`{key}`", expected, repr(shape)[:80], _TOOL)
    if 0 in shape and prod(filter(None, shape)) > MAX_NUMBER // dtype.itemsize:
        raise _broken(source, f"`{key}`", f"strides of at most {MAX_NUMBER}", shape, _TOOL)
    if stop - start != prod(shape) * dtype.itemsize:
        expected = f"{prod(shape) * dtype.itemsize} bytes for {name} {shape}"
        raise _broken(source, f"`{key}`", expected, f"bytes {start} to {stop}", _TOOL)
    return Span(key, dtype, tuple(shape), start, stop)


def _check_spans(spans: Iterable[Span], size: int, source: str) -> None:
    at = 0
    for span in sorted(spans, key=lambda span: (span.start, span.stop)):
        if span.start != at:
            what = "overlaps the tensor before it" if span.start < at else "leaves a hole before it"
            raise _broken(source, f"`{span.key}` {what}", f"a start at byte {at}", span.start, _TOOL)
        at = span.stop
    if at != size:
        raise _broken(source, "the data", f"{at} bytes", size, _AGAIN)
