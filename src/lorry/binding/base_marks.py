"""What a base model is known by: marks, which are patterns of its layers' paths with the sizes that they have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import final

Layer = tuple[str, tuple[int, ...]]
"""A layer's path, every `.` written as `_`, and the shape of its weight."""


@final
@dataclass(frozen=True, slots=True)
class Mark:
    """Layers that a base has, and of all the other bases only those with a mark for them too."""

    path: re.Pattern[str]
    columns: tuple[int, ...] = ()
    """What the columns may count; any number where empty."""
    rows: tuple[int, ...] = ()

    def is_on(self, layer: Layer) -> bool:
        """Whether a layer has it."""
        path, shape = layer
        return (
            self.has_columns(shape[1:2]) and _is_one_of(shape[:1], self.rows) and bool(self.path.search(path))
        )

    def has_columns(self, count: tuple[int, ...]) -> bool:
        """Whether layers of so many columns can have it."""
        return _is_one_of(count, self.columns)


def _is_one_of(count: tuple[int, ...], allowed: tuple[int, ...]) -> bool:
    return not allowed or (bool(count) and count[0] in allowed)


@final
@dataclass(frozen=True, slots=True)
class Base:
    """A base model that adapters are made for."""

    name: str
    """What users call it: `--base sdxl`."""
    title: str
    marks: tuple[Mark, ...]
    kohya: str | None = None
    """`ss_base_model_version` in the headers of kohya's trainers, where it is known."""
    modelspec: str | None = None
    """`modelspec.architecture`, before `/lora`."""
    diffusers_names: bool = False
    """Whether kohya's trainers name its blocks as diffusers does, and not as its original checkpoint."""
    transformer: str | None = None
    """The class of its transformer in diffusers, where its original checkpoint has other names for the modules, or
    where nothing else tells a live model from another base."""
    singles: int | None = None
    """How many single blocks it has: a file for all of them is of this base, or of one with as many."""
    like: str | None = None
    """The base whose layers it shares under the same names in diffusers."""
    variant_of: tuple[str, ...] = ()
    """The bases that it is made of: it has the layers of one of them, and others besides, which its marks are of. A
    file without any of those is said to be for the base, whose layers it has."""


def mark(pattern: str, *columns: int, rows: tuple[int, ...] = ()) -> Mark:
    """Return the mark of layers whose path has a pattern, and whose weight has so many columns and rows."""
    return Mark(re.compile(pattern), columns, rows)


UNET = r"(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)_"
JOINT = r"(?<!single_)(?<!joint_)transformer_blocks_"


def sana_feed_forward(width: int, hidden: int) -> tuple[Mark, ...]:
    """Return the marks of the convolutions of one of Sana's sizes, which its attentions may not tell."""
    block = r"^(transformer_)?blocks_\d+_"
    return (
        mark(rf"{block}(ff_conv_inverted|mlp_inverted_conv_conv)$", width, rows=(2 * hidden,)),
        mark(rf"{block}(ff_conv_point|mlp_point_conv_conv)$", hidden, rows=(width,)),
    )
