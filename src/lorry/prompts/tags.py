"""One adapter as a prompt names it: `<lora:name:0.8:te=0.5:lbw=MIDD:stop=12>`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

Share = float
"""A part of the denoising steps, from 0 to 1."""


@final
@dataclass(frozen=True, slots=True)
class LoraTag:
    """An adapter that a prompt names, and how strongly it is to act. Printing it gives a tag that reads the same."""

    name: str
    """The name of a file in a library, without its suffix; folders before it may be given."""
    scale: float = 1.0
    """The strength on the denoiser; where there are `points`, these say it."""
    text_scale: float | None = None
    """The strength on the text encoders; None: that of the denoiser (at the first step)."""
    blocks: tuple[float, ...] | str | None = None
    """A factor for each block, by position, or the name of a preset of such factors; None: 1 everywhere."""
    start: int | Share | None = None
    """The first step in which it acts, counted from 1; or the share of the steps before that."""
    stop: int | Share | None = None
    """The first step in which it acts no more, counted from 1; or the share of the steps before that."""
    points: tuple[tuple[float, float], ...] = ()
    """(position, strength) pairs by rising position, between which the strength goes in a straight line. Positions are
    shares of the way from the first step to the last where none is above 1, else steps counted from 1."""

    @property
    def text_encoder_scale(self) -> float:
        """The strength on the text encoders, which run before the first step."""
        if self.text_scale is not None:
            return self.text_scale
        return self.points[0][1] if self.points else self.scale

    def __str__(self) -> str:
        return "<" + ":".join(["lora", escaped(self.name), *self._options()]) + ">"

    def _options(self) -> Iterable[str]:
        yield ",".join(f"{number(scale)}@{number(at)}" for at, scale in self.points) or number(self.scale)
        if self.text_scale is not None:
            yield f"te={number(self.text_scale)}"
        if self.blocks is not None:
            yield "lbw=" + (
                escaped(self.blocks) if isinstance(self.blocks, str) else ",".join(map(number, self.blocks))
            )
        yield from (f"{key}={value}" for key, value in self._steps())

    def _steps(self) -> Iterable[tuple[str, int | float]]:
        if self.start is not None:
            yield "start", self.start
        if self.stop is not None:
            yield "stop", self.stop


def number(value: float) -> str:
    """Write a number so that it reads back as the same one, and no longer than needed."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def escaped(name: str) -> str:
    """Write a name so that nothing in it ends the tag or a part of it."""
    return re.sub(r"([\\:<>=\"])", r"\\\1", name)
