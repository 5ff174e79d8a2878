"""The pictures and captions of a folder, in any of the three layouts that people keep them in."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, final

from PIL import Image, ImageOps

from lorry.errors import DataError, some

SUFFIXES: Final = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jfif", ".jpe", ".apng", ".jp2"),
    *(".avif", ".heic", ".heif", ".jxl"),
)
"""Of these Pillow reads the last row where it is built so, or where its user has registered a plugin."""
_REPEATED: Final = re.compile(r"(\d+)_(.+)")
_CAPTION_SUFFIXES: Final = (".txt", ".caption")
_BESIDE: Final = (
    *_CAPTION_SUFFIXES,
    ".json",
    ".jsonl",
    ".csv",
    ".toml",
    ".md",
    ".npz",
    ".safetensors",
    ".ini",
    ".db",
)
"""What lies beside pictures and is none: captions, lists, other programs' caches, a system's own files."""
_CAPTION_KEYS: Final = ("text", "caption", "prompt")


@final
@dataclass(frozen=True, slots=True)
class Picture:
    """One picture and its caption."""

    path: Path
    caption: str
    size: tuple[int, int]
    """Width and height, turned as the camera was."""
    digest: str
    """SHA-256 of the file."""
    repeats: int = 1
    """How often an epoch shows it."""
    weight: float = 1.0
    """Of its loss."""
    prior: bool = False
    """Whether it shows what the adapter is to leave as it was."""
    group: str = ""
    """The folder that it is in, as its header calls it."""


@final
@dataclass(frozen=True, slots=True)
class DataSet:
    """The pictures that can be used, and a sentence for each thing that is not as it should be."""

    pictures: tuple[Picture, ...]
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Return a hash of everything that training takes from it."""
        lines = [f"{p.digest} {p.repeats} {p.weight} {p.caption}" for p in self.pictures]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_data(folder: Path, trigger: str = "", *, prior_weight: float | None = None) -> DataSet:
    """Read a folder of pictures.

    - `10_name/*.png` with `*.txt` beside: kohya's folders, where 10 is how often an epoch shows each picture, and
      `name` the caption of those without a text.
    - `metadata.jsonl`: a line a picture, with `file_name` and `text`, as Hugging Face's image folders have it.
    - otherwise all pictures in the folder, each with the text of the same name.

    Args:
        folder: to read.
        trigger: a word to put in front of captions that do not begin with it.
        prior_weight: of the loss of these pictures, when they are prior ones.

    Raises:
        DataError: there is no such folder, no picture that can be used in it, or a line of `metadata.jsonl` is wrong.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: expected one with pictures.")
    notes: list[str] = []
    prior = prior_weight is not None
    weight = prior_weight if prior_weight is not None else 1.0
    found = [
        replace(picture, caption=_triggered(picture.caption, trigger), weight=weight, prior=prior)
        for picture in _pictures(folder, notes)
    ]
    notes += [f"{p.path.name}: has no caption, and is trained without words." for p in found if not p.caption]
    if not found:
        skipped = " ".join(notes[:3])
        raise DataError(
            f"There is no picture to train on in {folder}. Expected files ending in {', '.join(SUFFIXES[:4])}, … in "
            "the folder itself, in folders such as `10_name`, or listed in its `metadata.jsonl`."
            + (f" Skipped: {skipped}" if notes else "")
        )
    return DataSet(tuple(found), tuple(notes))


def open_picture(path: Path) -> Image.Image:
    """Open a picture as RGB: turned upright, transparency on white, the first frame of several.

    Raises:
        DataError: it cannot be read, or has more than the 179 million pixels that Pillow takes for an attack.
    """
    with _opened(path) as image:
        return _as_rgb(ImageOps.exif_transpose(image))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            # Pillow's about size, which is checked here, and about odd metadata
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                yield image
    except Exception as error:  # decoders raise nearly everything on broken files
        raise DataError(f"{path.name}: cannot be read as a picture: {str(error).rstrip('.')}.") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        scale = 1 / 257 if image.mode != "F" and (image.getextrema()[1] or 0) > 255 else 1.0  # type: ignore[operator]
        image = image.point(lambda value: value * scale).convert("L")
    if image.has_transparency_data:
        upright = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
    return image.convert("RGB")


def _pictures(folder: Path, notes: list[str]) -> Iterator[Picture]:
    listing = folder / "metadata.jsonl"
    if listing.is_file():
        rows: Iterator[tuple[Path, str, int, str]] = _listed(folder, listing)
    else:
        rows = _in_folders(folder, notes)
    for path, caption, repeats, group in rows:
        try:
            yield _read(path, caption, repeats, group)
        except DataError as error:
            notes.append(f"{error} Skipped.")


def _in_folders(folder: Path, notes: list[str]) -> Iterator[tuple[Path, str, int, str]]:
    repeated = [
        (sub, m) for sub in sorted(folder.iterdir()) if sub.is_dir() and (m := _REPEATED.fullmatch(sub.name))
    ]
    for place in [sub for sub, _ in repeated] or [folder]:
        notes += _passed_over(place)
    if not repeated:
        for path in _files(folder):
            yield path, _caption_beside(path, ""), 1, folder.resolve().name
    elif beside := _files(folder):
        notes.append(
            f"{beside[0].name}: stands beside {repeated[0][0].name}, and only folders with a number are read. Skipped"
            + (f", and {len(beside) - 1} more." if len(beside) > 1 else ".")
        )
    for sub, match in repeated:
        if not int(match[1]):
            notes.append(f"{sub.name}: is to be shown 0 times. Skipped.")
            continue
        for path in _files(sub):
            yield path, _caption_beside(path, match[2].replace("_", " ")), int(match[1]), sub.name


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _passed_over(folder: Path) -> list[str]:
    """Return a sentence on the files that may be pictures, of a kind that is not read."""
    names = sorted(
        p.name
        for p in folder.iterdir()
        if p.is_file() and not p.name.startswith(".") and p.suffix.lower() not in (*SUFFIXES, *_BESIDE)
    )
    return [f"{some(names, 3)}: of a kind that is not read as a picture. Skipped."] if names else []


def _caption_beside(path: Path, otherwise: str) -> str:
    for suffix in _CAPTION_SUFFIXES:
        text = path.with_suffix(suffix)
        if text.is_file():
            return " ".join(_text_of(text).split())
    return otherwise


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except ValueError as error:
        raise DataError(f"{path.name}: is no text in UTF-8.") from error


def _listed(folder: Path, listing: Path) -> Iterator[tuple[Path, str, int, str]]:
    lines = _text_of(listing).split("\n")  # `splitlines` would cut a caption at U+2028
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name = row["file_name"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{listing}, line {number}: expected a JSON object with `file_name` and `text`, got {line[:60]!r}."
            ) from error
        if not _is_text(name) or "\0" in name or not _is_inside(folder / name, folder):
            raise DataError(f"{listing}, line {number}: {name!r} is no file inside {folder}.")
        caption = next((row[key] for key in _CAPTION_KEYS if row.get(key)), "")
        if not _is_text(caption):
            raise DataError(f"{listing}, line {number}: the caption is no text: {caption!r}.")
        yield folder / name, " ".join(caption.split()), 1, folder.resolve().name


def _is_text(value: object) -> bool:
    """Whether a value is a text without halves of characters, which JSON may hold and nothing else takes."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _read(path: Path, caption: str, repeats: int, group: str) -> Picture:
    """Read what is needed before training from a file's header, and hash it."""
    with _opened(path) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) >= 5
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    size = (height, width) if turned else (width, height)
    return Picture(path, caption, size, digest, repeats, group=group)


def _triggered(caption: str, trigger: str) -> str:
    if not trigger or re.match(rf"{re.escape(trigger)}(?!\w)", caption):
        return caption
    return f"{trigger}, {caption}" if caption else trigger
