"""Turns an icon's SVG text into pictures: the base look, and the looks the style adapters are taught.

Every look is made from the same outlines, so an adapter learns how a thing is drawn and never what it is.
"""

from __future__ import annotations

import colorsys
import io
import json
import re
from functools import cache
from pathlib import Path
from typing import Final, Literal

import numpy as np
import resvg_py
from PIL import Image, ImageFilter

from concepts import COLOURS, Concept
from subjects import SUBJECT_SVG

Look = Literal["base", "line", "pixel", "neon"]
RGB = tuple[int, int, int]
LOOKS: Final[tuple[Look, ...]] = ("base", "line", "pixel", "neon")
ICON_PX: Final = 128
CANVAS_PX: Final = 192
HEX: Final = re.compile(r"#(?:[0-9a-fA-F]{6}|[0-9a-fA-F]{3})\b")
FILL: Final = re.compile(r'fill="(#[0-9a-fA-F]{3,6}|url\([^)]*\))"')
SPRITE_BLOCKS: Final = 16
SPRITE_EDGE: Final = (30, 26, 46)


@cache
def _icons(work: Path) -> dict[str, dict[str, str]]:
    """Every icon of the data package by name."""
    path = work / "npm/node_modules/@iconify-json/fluent-emoji-flat/icons.json"
    icons: dict[str, dict[str, str]] = json.loads(path.read_text())["icons"]
    return icons


def _rgb(text: str) -> RGB:
    digits = text[1:] if len(text) == 7 else "".join(2 * c for c in text[1:])
    return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16)


def _hex(colour: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{max(0, min(255, round(255 * c))):02x}" for c in colour)


def _hsv(rgb: RGB) -> tuple[float, float, float]:
    return colorsys.rgb_to_hsv(*(c / 255 for c in rgb))


def _raster(body: str) -> Image.Image:
    """The icon in the middle of a clear canvas, so that it may later be cropped off centre."""
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{body}</svg>'
    data = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=ICON_PX, height=ICON_PX))
    icon = Image.open(io.BytesIO(data)).convert("RGBA")
    canvas = Image.new("RGBA", (CANVAS_PX, CANVAS_PX))
    canvas.paste(icon, ((CANVAS_PX - ICON_PX) // 2,) * 2)
    return canvas


def _main_colour(body: str) -> RGB:
    """The colour that covers most of the icon; saturated colours count more."""
    pixels = np.asarray(_raster(body)).reshape(-1, 4)
    solid = pixels[pixels[:, 3] > 200][:, :3]
    values, counts = np.unique(solid, axis=0, return_counts=True)
    weights = [n * (0.1 + _hsv(tuple(int(c) for c in v))[1]) for v, n in zip(values, counts, strict=True)]
    r, g, b = values[int(np.argmax(weights))]
    return int(r), int(g), int(b)


def _recoloured(body: str, target: RGB) -> str:
    """Turns every colour near the main hue to the target's hue; lighter and darker shades stay so."""
    hue, sat, val = _hsv(_main_colour(body))
    new_hue, new_sat, new_val = _hsv(target)

    def turn(match: re.Match[str]) -> str:
        h, s, v = _hsv(_rgb(match[0]))
        away = abs((h - hue + 0.5) % 1.0 - 0.5)
        if away > 0.09 or s < 0.2 or v < 0.2:
            return match[0]
        return _hex(colorsys.hsv_to_rgb(new_hue, min(1.0, new_sat * s / sat), min(1.0, new_val * v / val)))

    return HEX.sub(turn, body)


def svg_body(work: Path, concept: Concept, colour: str | None) -> str:
    """The icon's drawing, recoloured if a colour is named."""
    body = SUBJECT_SVG.get(concept.icon) or _icons(work)[concept.icon]["body"]
    return body if colour is None else _recoloured(body, COLOURS[colour])


def _line_body(body: str) -> str:
    """A colouring-book page: white shapes with black strokes. Dark shapes (eyes, tyres) stay filled."""

    def stroke(match: re.Match[str]) -> str:
        dark = match[1].startswith("#") and _hsv(_rgb(match[1]))[2] < 0.3
        fill = "#141414" if dark else "#ffffff"
        return f'fill="{fill}" stroke="#141414" stroke-width=".95" stroke-linejoin="round"'

    return re.sub(r' (?:fill-)?opacity="[^"]*"', "", FILL.sub(stroke, body))


def _neon_body(body: str) -> str:
    """Glowing tubes: dark shapes edged in a bright shade of their own colour."""

    def glow(match: re.Match[str]) -> str:
        h, s, v = _hsv(_rgb(match[1])) if match[1].startswith("#") else (0.5, 0.6, 1.0)
        plain = s < 0.2 or v < 0.3
        tube = _hex(colorsys.hsv_to_rgb(0.5 if plain else h, 0.25 if plain else 0.75, 1.0))
        return f'fill="#0c0a1a" stroke="{tube}" stroke-width="1.1" stroke-linejoin="round"'

    return re.sub(r' (?:fill-)?opacity="[^"]*"', "", FILL.sub(glow, body))


@cache
def render(work: Path, concept: Concept, colour: str | None, look: Look) -> Image.Image:
    """The icon in one look, on a clear canvas of `CANVAS_PX`."""
    body = svg_body(work, concept, colour)
    match look:
        case "line":
            return _raster(_line_body(body))
        case "neon":
            return _raster(_neon_body(body))
        case _:
            return _raster(body)


def _crop(icon: Image.Image, px: int, scale: float, shift: tuple[float, float]) -> Image.Image:
    side = ICON_PX / scale
    x, y = ((CANVAS_PX - side) / 2 - d * side for d in shift)
    box = (max(0.0, x), max(0.0, y), min(float(CANVAS_PX), x + side), min(float(CANVAS_PX), y + side))
    return icon.convert("RGBa").resize(
        (px, px), Image.Resampling.BOX if px < 32 else Image.Resampling.HAMMING, box
    )


def _over(icon: Image.Image, background: RGB) -> Image.Image:
    picture = Image.new("RGBA", icon.size, (*background, 255))
    picture.alpha_composite(icon.convert("RGBA"))
    return picture.convert("RGB")


def _sprite(icon: Image.Image, px: int, background: RGB) -> Image.Image:
    """A game sprite: 16 by 16 blocks, at most six colours, a dark edge of one block around the thing."""
    small = np.asarray(icon.convert("RGBA"))
    solid = small[..., 3] > 110
    colours = Image.fromarray(small[..., :3]).quantize(7, Image.Quantize.MEDIANCUT, kmeans=2).convert("RGB")
    near = np.pad(solid, 1)
    near = near[:-2, 1:-1] | near[2:, 1:-1] | near[1:-1, :-2] | near[1:-1, 2:]
    out = np.full((*solid.shape, 3), background, np.uint8)
    out[near & ~solid] = SPRITE_EDGE
    out[solid] = np.asarray(colours)[solid]
    return Image.fromarray(out).resize((px, px), Image.Resampling.NEAREST)


def _neon(icon: Image.Image, background: RGB) -> Image.Image:
    """Adds the glow, on the darkest shade of the background's colour."""
    night: RGB = (
        tuple(round(6 + 0.13 * c) for c in background) if background != (255, 255, 255) else (12, 10, 26)
    )
    sharp = np.asarray(_over(icon, night)).astype(np.float32)
    tubes = Image.fromarray((np.clip(sharp - 40, 0, 255)).astype(np.uint8))
    halo = np.asarray(tubes.filter(ImageFilter.GaussianBlur(2.2))).astype(np.float32)
    return Image.fromarray(np.clip(sharp + 0.8 * halo, 0, 255).astype(np.uint8))


def compose(
    icon: Image.Image, look: Look, background: RGB, scale: float, shift: tuple[float, float], px: int = 64
) -> Image.Image:
    """One training picture: the icon at a size and place (in parts of the picture) on a background."""
    match look:
        case "pixel":
            blocks = tuple(round(d * SPRITE_BLOCKS) / SPRITE_BLOCKS for d in shift)
            return _sprite(_crop(icon, SPRITE_BLOCKS, scale * 0.92, (blocks[0], blocks[1])), px, background)
        case "neon":
            return _neon(_crop(icon, px, scale, shift), background)
        case _:
            return _over(_crop(icon, px, scale, shift), background)
