"""ComfyUI's names of text encoders, which say what an encoder is and not its place.

What it is tells its width; where two have one width, the class of the base's model, as far as it is known, or what the
file has beside it.

Source: Comfy-Org/ComfyUI, `comfy/text_encoders/*.py`, `comfy/sd1_clip.py`, and the configurations beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from lorry.adapters import Adapter, Entry
from lorry.dialects._containers import COMFY_TEXT_ENCODERS
from lorry.names import DENOISER, DENOISERS

CLASSES = {
    "t5xxl": "T5EncoderModel",
    "umt5xxl": "UMT5EncoderModel",
    "t5base": "T5EncoderModel",
    "umt5base": "UMT5EncoderModel",
    "pile_t5xl": "UMT5EncoderModel",
    "mt5xl": "T5EncoderModel",
    "llama": "LlamaModel",
    "qwen3_8b": "Qwen3Model",
    "qwen3_2b": "Qwen3Model",
}
"""The classes of those that their layers alone do not tell."""
BERT = "hydit_clip.transformer.bert."
_T5_ROOT = "encoder.block."
_BERT_ROOT = "encoder.layer."
_CLIP_ROOTS = ("encoder.layers.", "text.model.", "text.projection")
_CLIPS = {768: "clip_l", 1024: "clip_h", 1280: "clip_g"}
"""By width: HunyuanVideo's second text encoder is a CLIP-L, that of SDXL a CLIP-G, the only one of Stable Diffusion 2
a CLIP-H."""
_CLIP_PLACES = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
"""Of others, by their place."""
_DECODER_ROOTS = ("layers.", "model.layers.")
_DECODERS = {
    1024: "qwen3_06b",
    2304: "gemma2_2b",
    2560: "qwen3_4b",
    3584: "qwen25_7b",
    3840: "gemma3_12b",
    5120: "mistral3_24b",
}
"""Language models by their width."""
_QWEN3 = {2048: "qwen3_2b", 4096: "qwen3_8b"}
"""Those of widths that others have too."""
_LLAMA = (4096, 14336)
"""Its width, and that of its feed-forward. The attentions of a Qwen 3 8B have the same sizes."""
_WAN = re.compile(r"blocks[._]\d+[._]((self_attn|cross_attn)[._][qkvo](_img)?|ffn[._][02])")


def classes_in(keys: Iterable[str]) -> dict[str, str]:
    """Return the classes of text encoders that a file's keys name, by component."""
    parts = (key.split(".", 2) for key in keys if key.startswith("text_encoders."))
    names = {found[1] for found in parts}
    return {COMFY_TEXT_ENCODERS.get(name, "text_encoder"): CLASSES[name] for name in names & CLASSES.keys()}


def encoder_stem(adapter: Adapter, entry: Entry) -> str | None:
    """Return what stands between `text_encoders.` and a path in a text encoder; None where ComfyUI has no name."""
    component, shape = entry.target.component, tuple(entry.delta.shape)
    path = entry.target.path.replace("_", ".")
    cls = adapter.text_encoders.get(component, "")
    if path.startswith(_T5_ROOT):
        name = _t5(cls or _t5_beside(adapter, component, shape), path, shape)
    elif path.startswith(_BERT_ROOT):
        return BERT if component == "text_encoder" and 1024 in shape else None
    elif path.startswith(_CLIP_ROOTS):
        name = _CLIPS.get(min(shape[:2], default=0), _CLIP_PLACES.get(component))
    elif path.startswith(_DECODER_ROOTS) and len(shape) == 2:
        name = _decoder(cls, component, path, shape)
    else:
        return None
    return None if name is None else f"{name}.transformer."


def _t5(cls: str, path: str, shape: tuple[int, ...]) -> str | None:
    is_umt5 = cls.startswith("UMT5")
    width = shape[0] if path.endswith((".o", ".wo")) else shape[-1]
    if width == 2048:
        return "pile_t5xl" if is_umt5 else "mt5xl"
    if width == 768:
        return "umt5base" if is_umt5 else "t5base"
    if width == 1472:
        return "byt5_small"
    if width == 1024 and not {16384, 65536} & {*shape}:
        return None  # Cosmos 1.0's T5 has such sizes besides; others of its width are not in ComfyUI
    return "umt5xxl" if is_umt5 else "t5xxl"


def _t5_beside(adapter: Adapter, component: str, shape: tuple[int, ...]) -> str:
    """Return the class of a T5 that nobody says: Wan's is a UMT5, and so is AuraFlow's, while HunyuanDiT's, a second
    encoder of the same sizes, is none.
    """
    denoiser = (e.target.path for e in adapter.entries if e.target.component in (DENOISER, *DENOISERS))
    is_umt5 = any(map(_WAN.fullmatch, denoiser)) or (component == "text_encoder" and 2048 in shape)
    return CLASSES["umt5xxl" if is_umt5 else "t5xxl"]


def _decoder(cls: str, component: str, path: str, shape: tuple[int, ...]) -> str | None:
    width = shape[0] if path.endswith((".o.proj", ".down.proj")) else shape[1]
    if (name := _DECODERS.get(width)) is not None:
        return name
    if cls.startswith(("Qwen3Model", "Qwen3ForCausalLM")):
        return _QWEN3.get(width)
    is_llama = cls.startswith("Llama") or component == "text_encoder_4" or _LLAMA[1] in shape
    return "llama" if width == _LLAMA[0] and is_llama else None
