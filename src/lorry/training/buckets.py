"""Sizes to train at: about one number of pixels in several aspect ratios, and pictures cut to them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import log
from typing import final

from PIL import Image

Size = tuple[int, int]
"""Width and height."""


@final
@dataclass(frozen=True, slots=True)
class Fitted:
    """A picture cut to a size, and what SDXL is told about how it was."""

    image: Image.Image
    original: Size
    """Before it was scaled."""
    corner: Size
    """How many pixels were cut off on the left and at the top."""


@cache
def sizes(resolution: int, step: int) -> tuple[Size, ...]:
    """Return the sizes of about `resolution` squared pixels, no more, whose sides are multiples of `step`.

    The longer side is at most four times the shorter one.
    """
    area = resolution * resolution
    widths = range(step, 2 * resolution + 1, step)
    found = {(width, area // width // step * step) for width in widths}
    both = found | {(height, width) for width, height in found}
    return tuple(sorted(s for s in both if min(s) >= step and 4 * min(s) >= max(s))) or (
        (resolution, resolution),
    )


def nearest_size(picture: Size, resolution: int, step: int) -> Size:
    """Return the size whose aspect ratio is nearest to a picture's; the larger one of two."""
    ratio = log(picture[0] / picture[1])
    return min(sizes(resolution, step), key=lambda s: (abs(log(s[0] / s[1]) - ratio), -s[0] * s[1]))


def fit(image: Image.Image, size: Size) -> Fitted:
    """Scale a picture until it covers `size`, and cut the middle out."""
    scale = max(size[0] / image.width, size[1] / image.height)
    covering = (max(size[0], round(image.width * scale)), max(size[1], round(image.height * scale)))
    resized = (
        image if covering == image.size else image.resize(covering, Image.Resampling.LANCZOS, reducing_gap=3)
    )
    left, top = (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2
    return Fitted(resized.crop((left, top, left + size[0], top + size[1])), image.size, (left, top))
