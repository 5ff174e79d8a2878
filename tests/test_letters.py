"""Texts in pictures: which font draws them, what is written for letters that no font has, and how lines are broken."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw, ImageFont

from lorry import letters
from lorry.letters import Font, drawable, wrapped

CHINESE = "猫"
HIEROGLYPH = "\U00013000"
"""In no font that is asked."""


def picture(text: str, font: Font) -> bytes:
    image = Image.new("L", (64, 32))
    ImageDraw.Draw(image).text((4, 4), text, 255, font)
    return image.tobytes()


def name_of(font: Font) -> str | None:
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font.getname()[0]


def test_plain_letters_have_pillows_own_font() -> None:
    text, font = drawable("a cat, 0.5", 14)
    assert text == "a cat, 0.5"
    assert name_of(font) == name_of(drawable("", 14)[1])
    assert font.getlength(text) < drawable(text, 28)[1].getlength(text)


def test_other_letters_have_a_font_that_draws_them_and_no_boxes() -> None:
    text, font = drawable("кот γάτα", 14)
    assert text == "кот γάτα"
    assert name_of(font) != name_of(drawable("", 14)[1])
    box = picture("\U0010ffff", font)
    assert all(picture(letter, font) != box for letter in text)


def test_letters_that_no_font_has_are_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawable(f"a {HIEROGLYPH}", 14)[0] == "a \\U00013000"
    monkeypatch.setattr(letters, "FONTS", ())
    text, font = drawable(f"кот {CHINESE}", 14)
    assert text == "кот \\u732b"
    box = picture("\U0010ffff", font)
    assert all(picture(letter, font) != box for letter in text)


def test_what_only_says_how_others_are_drawn_is_left_out() -> None:
    assert drawable("a\ufe0fb\u200dc", 14)[0] == "abc"


def test_lines_are_broken_between_words_and_inside_those_that_are_too_long() -> None:
    lines, font = wrapped("one two " + "w" * 40, 14, 100)
    assert lines[0] == "one two"
    assert "".join(lines[1:]) == "w" * 40
    assert len(lines) > 3
    assert all(font.getlength(line) <= 100 for line in lines)


def test_a_letter_wider_than_a_line_has_a_line_of_its_own() -> None:
    assert wrapped("ww", 14, 1)[0] == ["w", "w"]
