"""Container prefixes: what the first parts of a key say about the model. The first of a key's three layers."""

from __future__ import annotations

import re

from lorry.dialects._paths import connectors_path, plain_path
from lorry.dialects._suffixes import split_suffix
from lorry.names import CONDITIONER, CONNECTORS, DENOISER, DURATION_EMBEDDER, Target

FLAT = {
    "lora_unet_": DENOISER,  # kohya's trainers write it for every denoiser, Flux and SD3 included
    "lora_transformer_": "transformer",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_te4_": "text_encoder_4",
    "lora_prior_unet_": "prior",  # Stable Cascade
    "lora_prior_te_": "text_encoder",
    "lycoris_unet_": DENOISER,
    "lycoris_te_": "text_encoder",
    "lycoris_te1_": "text_encoder",
    "lycoris_te2_": "text_encoder_2",
    "lycoris_": DENOISER,
    "oft_unet_": DENOISER,  # kohya's OFT
    "Hunyuan_video_I2V_lora_": DENOISER,  # Tencent's own trainer
}
"""Prefixes of flattened names. Source: kohya-ss/sd-scripts, `networks/lora.py`; LyCORIS, `lycoris/wrapper.py`;
Tencent-Hunyuan/HunyuanVideo-I2V, `hyvideo/inference.py`."""
FLAT_PREFIXES = tuple(FLAT)

DOTTED = {
    "unet": "unet",
    "transformer": "transformer",
    "transformer_1": "transformer",  # ai-toolkit's of Wan 2.2, whose one file is for both
    "transformer_2": "transformer_2",
    "transformer_ref": "transformer_ref",  # MiniMax-H3
    "prior": "prior",
    "conditional_transformer": "transformer",  # Ideogram
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "text_encoder_3": "text_encoder_3",
    "text_encoder_4": "text_encoder_4",
    "diffusion_model": DENOISER,  # ComfyUI, ai-toolkit
    "dit": DENOISER,  # DiffSynth-Studio, where `--remove_prefix_in_ckpt` was left out
    "net": DENOISER,  # NVIDIA's Cosmos, and Anima
    CONDITIONER: CONDITIONER,
    CONNECTORS: CONNECTORS,
    DURATION_EMBEDDER: DURATION_EMBEDDER,
    "clip_l": "text_encoder",  # OMI
    "clip_g": "text_encoder_2",
    "t5": "text_encoder_3",
    "llama": "text_encoder_4",
}
"""First parts of dotted names. Source: Comfy-Org/ComfyUI, `comfy/lora.py`; the Open Model Initiative's names as in
Nerogar/OneTrainer, `modules/util/convert/lora`."""

COMFY_TEXT_ENCODERS = {
    "clip_g": "text_encoder_2",
    "mt5xl": "text_encoder_2",  # HunyuanDiT
    "byt5_small": "text_encoder_2",  # HunyuanImage
    "t5xxl": "text_encoder_3",
    "llama": "text_encoder_4",
}
"""What ComfyUI calls text encoders that are not a pipeline's first: `text_encoders.clip_g.transformer.…`. Which place a
T5 or a Llama has differs between pipelines, and is settled where the model is: SD3 has a T5 beside a CLIP-G."""

WRAPPERS = ("base_model.model.", "module.", "_orig_mod.", "pipe.", "qwen3.", "generator.", "velocity_model.")
"""Prefixes of wrapping modules, which may stand in any number before and after the component's. `pipe.` is
DiffSynth-Studio's, `qwen3.` what sd-scripts' converter puts after `text_encoder.` for Anima, `generator.` that of
distillations (Self-Forcing, LongLive), `velocity_model.` LTX-2's."""
TRANSPARENT = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Wrappers of a single layer, in the middle of a path."""


def find_flat_target(stem: str) -> Target | None:
    """Return the target of a flattened name, or None where `stem` has no such prefix.

    Any number of underscores may follow the prefix (Wan-Fun and Z-Image write two) and the name, and some of its dots
    may be left: converters that put `lora_unet_` for `diffusion_model.` write `lora_unet_blocks.0.self_attn.q`.
    """
    if not stem.startswith(FLAT_PREFIXES):
        return None
    prefix = next(prefix for prefix in FLAT_PREFIXES if stem.startswith(prefix))
    path = stem.removeprefix(prefix).replace(".", "_").strip("_")
    if path.startswith("llm_adapter_"):
        return Target(CONDITIONER, path.removeprefix("llm_adapter_"), flat=True)
    if path.startswith("text_model_") and FLAT[prefix] == DENOISER:  # LyCORIS has one prefix for all models
        return Target("text_encoder", path, flat=True)
    if (of_connectors := connectors_path(path)) is not None:
        return Target(CONNECTORS, of_connectors, flat=True)
    return Target(FLAT[prefix], path, flat=True) if path else None


def is_flat(key: str) -> bool:
    """Whether a key is a flattened name with a parameter's suffix."""
    ending = split_suffix(key)
    return ending is not None and find_flat_target(ending.stem) is not None


def dotted_target(stem: str) -> Target:
    """Return the target of a dotted name, with every container taken off."""
    component, path = None, stem
    while (shorter := _without_container(path, component)) is not None:
        path, found = shorter
        component = found or component
    if "_orig_mod." in path or "_wrapped_module." in path:
        path = TRANSPARENT.sub("", path)
    if component is None or component == DENOISER:
        path = path.removeprefix("model.")
        component = "text_encoder" if path.startswith("text_model.") else DENOISER
    if path.startswith("llm_adapter."):  # Anima's text adapter, which diffusers has as a component of its own
        return Target(CONDITIONER, path.removeprefix("llm_adapter."))
    if (of_connectors := connectors_path(path)) is not None:  # and LTX-2's
        return Target(CONNECTORS, of_connectors)
    return Target(component, plain_path(path))


def _without_container(path: str, component: str | None) -> tuple[str, str | None] | None:
    """Return a path without its first container and the component that this names; None where it has none."""
    for wrapper in WRAPPERS:
        if path.startswith(wrapper):
            return path.removeprefix(wrapper), None
    if component is not None:
        first, _, rest = path.partition(".")
        if rest and component == DENOISER and first in ("transformer_1", "transformer_2"):
            return rest, DOTTED[first]
        return (rest, None) if rest and first == "diffusion_model" else None
    path = path.removeprefix("model.")
    first, _, rest = path.partition(".")
    if first == "text_encoders":
        name, _, rest = rest.partition(".")
        rest = rest.removeprefix("transformer.").removeprefix("bert.")  # HunyuanDiT's `hydit_clip`
        return rest, COMFY_TEXT_ENCODERS.get(name, "text_encoder")
    found = DOTTED.get(first)
    return (rest, found) if found and rest else None
