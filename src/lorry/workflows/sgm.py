"""Original (SGM) block names of Stable Diffusion's UNets and their names in diffusers, without a model at hand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import final

from lorry.binding.original_names import INSIDE_RESNET, sgm_names

SGM_ROOT = re.compile(r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)([._]\d)")


@final
@dataclass(frozen=True, slots=True)
class UnetLayout:
    """Which blocks a UNet has: how many layers each, and which have attention."""

    name: str
    layers: int
    attention: tuple[bool, ...]
    """Of the blocks on the way down; the way up has them in reverse, with one layer more."""


SD = UnetLayout("SD 1.x and 2.x", 2, (True, True, True, False))
SDXL = UnetLayout("SDXL", 2, (False, True, True))


def layout_of(paths: Iterable[str]) -> UnetLayout:
    """Return the layout that original names are of: SDXL has nine blocks each way, Stable Diffusion twelve."""
    deep = re.compile(r"(input|output)_blocks[._](9|10|11)[._]")
    return SD if any(deep.match(path) for path in paths) else SDXL


def is_sgm(path: str) -> bool:
    """Whether a path begins as an original name of a UNet's module does."""
    return SGM_ROOT.match(path) is not None


def diffusers_path(path: str, layout: UnetLayout) -> str:
    """Return the diffusers path of a module from its original one, dotted or flattened as that is.

    A path that no module of the layout has is returned as it is.
    """
    separator = "." if "." in path else "_"
    units = _units(layout, separator)
    parts = path.split(separator)
    for length in range(len(parts), 0, -1):
        unit = separator.join(parts[:length])
        if unit in units:
            return separator.join([units[unit], *parts[length:]])
    return path


@cache
def _units(layout: UnetLayout, separator: str) -> dict[str, str]:
    names = sgm_names(_paths(layout))
    return {sgm.replace(".", separator): path.replace(".", separator) for sgm, path in names.items()}


def _paths(layout: UnetLayout) -> Iterator[str]:
    """Every module path of a UNet down to what is named alike in both."""
    yield from ("conv_in", "conv_norm_out", "conv_out")
    yield from ("time_embedding.linear_1", "time_embedding.linear_2")
    yield from ("add_embedding.linear_1", "add_embedding.linear_2")
    yield from (*_resnet("mid_block.resnets.0"), "mid_block.attentions.0", *_resnet("mid_block.resnets.1"))
    last = len(layout.attention) - 1
    for number, attention in enumerate(layout.attention):
        yield from _block(f"down_blocks.{number}", layout.layers, attention)
        if number < last:
            yield f"down_blocks.{number}.downsamplers.0.conv"
    for number, attention in enumerate(reversed(layout.attention)):
        yield from _block(f"up_blocks.{number}", layout.layers + 1, attention)
        if number < last:
            yield f"up_blocks.{number}.upsamplers.0.conv"


def _block(block: str, layers: int, attention: bool) -> Iterator[str]:
    for layer in range(layers):
        yield from _resnet(f"{block}.resnets.{layer}")
        if attention:
            yield f"{block}.attentions.{layer}"


def _resnet(path: str) -> Iterator[str]:
    yield path
    yield from (f"{path}.{part}" for part in INSIDE_RESNET)
