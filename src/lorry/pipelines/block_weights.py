"""Factors by block, by their place in a list: what `lbw=` in a prompt means on a model.

Source of the tables and presets: hako-mikan/sd-webui-lora-block-weight, README.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from torch import nn

from lorry.binding import carriers
from lorry.binding.original_names import sgm_names
from lorry.errors import StateError, did_you_mean

Blocks = Sequence[float] | str
"""A factor for each block, or the name of a preset."""


def _ids(kind: str, *numbers: int) -> tuple[str, ...]:
    return tuple(f"{kind}{number:02}" for number in numbers)


TABLES: Final[Mapping[int, tuple[str, ...]]] = {
    12: ("BASE", *_ids("IN", 4, 5, 7, 8), "MID", *_ids("OUT", *range(6))),
    17: ("BASE", *_ids("IN", 1, 2, 4, 5, 7, 8), "MID", *_ids("OUT", *range(3, 12))),
    20: ("BASE", *_ids("IN", *range(9)), "MID", *_ids("OUT", *range(9))),
    26: ("BASE", *_ids("IN", *range(12)), "MID", *_ids("OUT", *range(12))),
}
"""The blocks of a UNet that lists of so many numbers are for: 17 and 26 for Stable Diffusion, 12 and 20 for SDXL. The
short ones name the blocks with attention; those that they leave out are at 0, as that extension has it."""

_DEEP: Final = (*_ids("IN", 5, 7, 8), "MID", *_ids("OUT", 3, 4, 5, 6))
PRESETS: Final[Mapping[str, tuple[str, ...]]] = {
    "NONE": (),
    "ALL": TABLES[26],
    "INS": _ids("IN", 1, 2),
    "IND": _ids("IN", 5, 7, 8),
    "INALL": _ids("IN", 1, 2, 4, 5, 7, 8),
    "MIDD": _DEEP,
    "OUTD": _ids("OUT", 3, 4, 5, 6),
    "OUTS": _ids("OUT", 7, 8, 9, 10, 11),
    "OUTALL": _ids("OUT", *range(3, 12)),
}
"""The blocks of a UNet that are at 1, all others are at 0; text encoders are at 1 in all but `NONE`."""


def text_encoder_factor(blocks: Blocks, component: str) -> float:
    """Return the factor of a text encoder: the first number, or the second where Flux's 61 have two."""
    if isinstance(blocks, str):
        return float(bool(_preset(blocks)))
    return blocks[1 if len(blocks) == 61 and component == "text_encoder_2" else 0]


def block_factors(blocks: Blocks, model: nn.Module) -> dict[str, float]:
    """Return {module path: factor} for the modules of a denoiser; those that are in no block are left out.

    A UNet takes as many numbers as `TABLES` has names for it, or one for the text encoders and one for each block. A
    transformer takes one for the text encoders and one for each entry of its lists of blocks, in order; Flux takes the
    61 of the extension too: two text encoders, the layers before the blocks, the blocks, the layers after them.

    Raises:
        StateError: there is no such preset, or the model takes another number of factors.
    """
    paths = list(carriers(model))
    by_path = _unet_blocks(paths)
    if by_path:
        factors = _unet_factors(blocks, list(dict.fromkeys(by_path.values())))
        return {path: factors[block] for path, block in by_path.items()}
    factors = _transformer_factors(blocks, model)
    found = {path: _covering(path, factors) for path in paths}
    return {path: factors[block] for path, block in found.items() if block is not None}


def _unet_blocks(paths: Sequence[str]) -> dict[str, str]:
    """{module path: the name of its block}, in the order of the blocks; empty for a model that is no UNet."""
    found: dict[str, str] = {}
    for original, path in sgm_names(paths).items():
        if match := re.match(r"(input|middle|output)_blocks?(?:\.(\d+))?", original):
            number = "" if match[1] == "middle" else f"{int(match[2]):02}"
            found[path] = {"input": "IN", "middle": "MID", "output": "OUT"}[match[1]] + number
    order = {"I": 0, "M": 1, "O": 2}
    return dict(sorted(found.items(), key=lambda item: (order[item[1][0]], item[1])))


def _unet_factors(blocks: Blocks, names: Sequence[str]) -> dict[str, float]:
    if isinstance(blocks, str):
        return {name: float(name in _preset(blocks)) for name in names}
    takes = {25: (17, 26), 19: (12, 20)}.get(len(names), (len(names) + 1,))
    if len(blocks) not in takes:
        raise StateError(
            f"This UNet takes {' or '.join(map(str, takes))} factors by block, the first for the text encoders. "
            f"Got {len(blocks)}."
        )
    table = TABLES[len(blocks)] if len(names) in (19, 25) else ("BASE", *names)
    return dict.fromkeys(names, 0.0) | dict(zip(table, blocks, strict=True))


def _transformer_factors(blocks: Blocks, model: nn.Module) -> dict[str, float]:
    """{module path: factor} for the blocks of a transformer, and for its other layers where the list has them."""
    lists = {name: len(child) for name, child in model.named_children() if isinstance(child, nn.ModuleList)}
    paths = [f"{name}.{number}" for name, length in lists.items() for number in range(length)]
    if isinstance(blocks, str):
        if blocks not in ("ALL", "NONE"):
            _preset(blocks)
            raise StateError(f"The preset {blocks!r} is for UNets, and this is a {type(model).__name__}.")
        return dict.fromkeys(paths, float(blocks == "ALL"))
    if len(blocks) == 61 and len(paths) == 57:
        return dict(zip(paths, blocks[3:-1], strict=True)) | _ends(model, blocks[2], blocks[-1])
    if len(blocks) != len(paths) + 1:
        listed = " and ".join(f"{length} for `{name}`" for name, length in lists.items())
        raise StateError(
            f"This {type(model).__name__} takes {len(paths) + 1} factors by block: one for the text encoders, {listed}."
            f" Got {len(blocks)}."
        )
    return dict(zip(paths, blocks[1:], strict=True))


def _ends(model: nn.Module, first: float, last: float) -> dict[str, float]:
    """The factors of the layers before and after the lists of blocks."""
    names = list(dict(model.named_children()))
    lists = [name for name, child in model.named_children() if isinstance(child, nn.ModuleList)]
    begin, end = names.index(lists[0]), names.index(lists[-1])
    return dict.fromkeys(names[:begin], first) | dict.fromkeys(names[end + 1 :], last)


def _covering(path: str, factors: Mapping[str, float]) -> str | None:
    """The first two or fewer segments of a path that have a factor."""
    parts = path.split(".")
    return next((block for n in (2, 1) if (block := ".".join(parts[:n])) in factors), None)


def _preset(name: str) -> tuple[str, ...]:
    if name not in PRESETS:
        raise StateError(
            f"There is no preset {name!r} of factors by block.{did_you_mean(name, PRESETS)} "
            f"Known: {', '.join(PRESETS)}."
        )
    return PRESETS[name]
