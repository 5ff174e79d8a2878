"""Module paths that a key spells in another way than the model. The second of a key's three layers."""

from __future__ import annotations

import re

_PROCESSOR = re.compile(
    r"(?P<attention>.+?)(?:\.processor)?\.(?P<layer>to_q|to_k|to_v|to_out|add_k_proj|add_v_proj)_lora"
    r"\.(?P<rest>down\.weight|up\.weight|alpha)"
)
_UNET_LAYERS = {"to_out": "to_out.0"}
_CLIP_LAYERS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def plain_key(key: str) -> str:
    """Return a key of an old attention processor under the name of the layer it changes; other keys unchanged.

    `….attn1.processor.to_out_lora.down.weight` becomes `….attn1.to_out.0.lora.down.weight`, and a text encoder's
    `….self_attn.to_q_lora.up.weight` becomes `….self_attn.q_proj.lora.up.weight`.

    Source: huggingface/diffusers v0.19, `models/attention_processor.py` (`LoRAAttnProcessor`) and `loaders.py`.
    """
    found = _PROCESSOR.fullmatch(key) if "_lora." in key else None
    if found is None:
        return key
    attention, layer = found["attention"], found["layer"]
    layers = _CLIP_LAYERS if attention.endswith("self_attn") else _UNET_LAYERS
    suffix = found["rest"] if found["rest"] == "alpha" else f"lora.{found['rest']}"
    return f"{attention}.{layers.get(layer, layer)}.{suffix}"


def is_processor_key(key: str) -> bool:
    """Whether a key names an old attention processor or its text encoder's twin."""
    return "_lora." in key and _PROCESSOR.fullmatch(key) is not None
