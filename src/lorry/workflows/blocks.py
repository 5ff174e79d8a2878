"""Where in a model a layer is: its block, and its kind for tables of blocks by kinds."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lorry.binding.kinds import kind_of
from lorry.workflows.matching import Layer

_BLOCK = re.compile(
    r"(?:(?:model_)?diffusion_model_)?"
    r"((?:down_blocks|up_blocks|(?:single_)?transformer_blocks|double_blocks|single_blocks|joint_blocks"
    r"|encoder_layers|encoder_block|layers|blocks)_\d+|mid_block|[a-z]+(?:_[a-z]+)*)"
)
_ORDER = (
    "conv_in",
    "time",
    "down_blocks",
    "mid_block",
    "up_blocks",
    "double",
    "transformer",
    "joint",
    "single",
)


def block_of(layer: Layer) -> str:
    """Return the block that a layer is in: `down_blocks.1`, `mid_block`, `text_encoder.layers.3`, `conv_in`."""
    component, _, path = layer.name.partition(".")
    match = _BLOCK.match(path)
    found = match[1] if match else path
    name = re.sub(r"_(\d+)$", r".\1", found.replace("encoder_layers", "layers"))
    return name if component == "denoiser" else f"{component}.{name}"


def column_of(layer: Layer) -> str:
    """Return a layer's kind, self-attention and cross-attention apart where the names tell them."""
    kind = kind_of(layer.target)
    if kind != "attention":
        return kind
    path = layer.name
    return "self-attention" if "attn1" in path else "cross-attention" if "attn2" in path else kind


def in_order(blocks: Iterable[str]) -> list[str]:
    """Return block names in the order in which a model runs them, text encoders last."""

    def place(name: str) -> tuple[bool, int, str, int]:
        kind, _, number = name.rpartition(".")
        rank = next((n for n, start in enumerate(_ORDER) if name.startswith(start)), len(_ORDER))
        return (
            name.startswith("text_"),
            rank,
            kind if number.isdigit() else name,
            int(number) if number.isdigit() else 0,
        )

    return sorted(set(blocks), key=place)
