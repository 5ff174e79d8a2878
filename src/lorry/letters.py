"""Texts in pictures: a font that has their letters, and lines that fit."""

from __future__ import annotations

import unicodedata
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
FONTS: Final = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "FreeSans.ttf", "segoeui.ttf", "Arial Unicode.ttf"),
    *(
        "NotoSansCJK-Regular.ttc",
        "NotoSansCJKsc-Regular.otf",
        "DroidSansFallbackFull.ttf",
        "wqy-microhei.ttc",
    ),
    *(
        "wqy-zenhei.ttc",
        "msyh.ttc",
        "YuGothM.ttc",
        "malgun.ttf",
        "simsun.ttc",
        "msgothic.ttc",
        "PingFang.ttc",
    ),
    *(
        "Hiragino Sans GB.ttc",
        "AppleSDGothicNeo.ttc",
        "NotoSansDevanagari-Regular.ttf",
        "NotoSansThai-Regular.ttf",
    ),
    *("unifont.ttf", "unifont.otf"),
)
"""Files of fonts for many letters that systems have, asked in this order. Pillow knows the folders."""
_OWN: Final = ""
"""Stands for Pillow's own font, which is there on every machine and has few letters beyond ASCII."""
_ABSENT: Final = "\U0010ffff"
"""A number that will never be a letter: what a font draws for it, it draws for all that it lacks."""


def drawable(text: str, size: int) -> tuple[str, Font]:
    r"""Return a text as it can be drawn, and the font to draw it with.

    Where Pillow's own font lacks a letter, it is the font of the system that lacks fewest; what that one lacks too is
    written as an escape: `\u732b`.
    """
    seen = "".join(letter for letter in text if not _is_unseen(letter))
    best, lacking = _OWN, _lacking(seen, _OWN)
    for name in (*_shipped(), *FONTS):
        if not lacking:
            break
        here = lacking if _font(name, size) is None else _lacking(seen, name)
        if len(here) < len(lacking):
            best, lacking = name, here
    letters = _font(best, size) or ImageFont.load_default(size)
    return "".join(_escaped(letter) if letter in lacking else letter for letter in seen), letters


def wrapped(text: str, size: int, width: int) -> tuple[list[str], Font]:
    """Return a text in lines that fit a width in pixels, and the font to draw them with.

    Lines are broken between words, and inside a word that is too long for a line of its own.
    """
    text, letters = drawable(text, size)
    lines: list[str] = []
    for word in text.split():
        if lines and letters.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.extend(_broken(word, letters, width))
    return lines, letters


def _broken(word: str, letters: Font, width: int) -> list[str]:
    lines = [""]
    for letter in word:
        if lines[-1] and letters.getlength(lines[-1] + letter) > width:
            lines.append("")
        lines[-1] += letter
    return lines


def _is_unseen(letter: str) -> bool:
    """Whether a sign only says how others are drawn: a joiner, or which form of the letter before it is meant."""
    return unicodedata.category(letter) == "Cf" or "\ufe00" <= letter <= "\ufe0f"


def _lacking(text: str, name: str) -> set[str]:
    return {letter for letter in set(text) if not letter.isspace() and not _has(name, letter)}


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


@cache
def _has(name: str, letter: str) -> bool:
    return _drawn(name, letter) != _drawn(name, _ABSENT)


@cache
def _drawn(name: str, letter: str) -> bytes:
    picture = Image.new("L", (48, 48))
    ImageDraw.Draw(picture).text((12, 12), letter, 255, _font(name, 16))
    return picture.tobytes()


@cache
def _font(name: str, size: int) -> Font | None:
    try:
        return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except OSError:
        return None


@cache
def _shipped() -> tuple[str, ...]:
    """Return the font that matplotlib brings along, where that is installed."""
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return ()
    return (str(Path(spec.origin).with_name("mpl-data") / "fonts" / "ttf" / "DejaVuSans.ttf"),)
