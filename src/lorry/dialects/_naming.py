"""The names of modules in files that are written, where no model is at hand."""

from __future__ import annotations

import re
from dataclasses import replace

from lorry.dialects._unflatten import unflatten
from lorry.errors import UnsupportedAdapterError
from lorry.names import DENOISER, Target

UNET_ROOTS = (
    "down_blocks",
    "mid_block",
    "up_blocks",
    "conv_in",
    "conv_out",
    "time_embedding",
    "add_embedding",
)
SGM_ROOTS = ("input_blocks_", "middle_block_", "output_blocks_")
CLIP_ROOT = "text_model"
_EMBEDDINGS = re.compile(
    r"(?:.*[._])?(?:token_embedding|position_embedding|embed_tokens|shared|relative_attention_bias|embed_positions|"
    r"(?:word|position|token_type)_embeddings)"
)
"""The embeddings of text encoders, which are layers of nothing else by these names."""


def is_embedding(target: Target) -> bool:
    """Whether a layer is an embedding of a text encoder, by its name."""
    return _EMBEDDINGS.fullmatch(target.path) is not None


def dotted(target: Target) -> Target:
    """Return a target with a dotted path and its component's own name.

    Raises:
        UnsupportedAdapterError: it is a flattened original name, whose meaning only a model can tell.
    """
    path = target.path
    if target.flat and path.startswith(SGM_ROOTS):
        raise UnsupportedAdapterError(
            f"{target}: an original (SGM) block name, which only the model can translate. Say which model it is for: "
            "`base=` of `lorry.convert`, `--base` of `lorry convert`."
        )
    path = unflatten(path) if target.flat else path
    component = target.component
    if component == DENOISER:
        component = "unet" if path.split(".")[0] in UNET_ROOTS else "transformer"
    return Target(component, path)


def with_clip_root(target: Target) -> Target:
    """Return a target in CLIP under `text_model.`, which files have and transformers 5 has dropped from its model."""
    dot = "_" if target.flat else "."
    is_clip = target.component.startswith("text_encoder") and target.path.startswith(
        f"encoder{dot}layers{dot}"
    )
    return replace(target, path=f"{CLIP_ROOT}{dot}{target.path}") if is_clip else target
