"""Container prefixes: what the first parts of a key say about the model. The first of a key's three layers."""

from __future__ import annotations

import re

from lorry.names import DENOISER, Target

FLAT = {
    "lora_unet_": DENOISER,  # kohya's trainers write it for every denoiser, Flux and SD3 included
    "lora_transformer_": "transformer",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_prior_unet_": "prior",  # Stable Cascade
    "lora_prior_te_": "text_encoder",
    "lycoris_": DENOISER,
    "oft_unet_": DENOISER,  # kohya's OFT
}
"""Prefixes of flattened names. Source: kohya-ss/sd-scripts, `networks/lora.py`; LyCORIS, `lycoris/wrapper.py`."""

DOTTED = {
    "unet.": "unet",
    "transformer.": "transformer",
    "transformer_2.": "transformer_2",
    "prior.": "prior",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder_3.": "text_encoder_3",
    "text_encoder_4.": "text_encoder_4",
    "text_encoders.clip_l.transformer.": "text_encoder",  # ComfyUI
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "diffusion_model.": DENOISER,
}
"""Prefixes of dotted names."""

WRAPPERS = ("base_model.model.", "module.", "_orig_mod.")
"""Prefixes of wrapping modules, which may stand in any number before and after the component's."""
TRANSPARENT = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Wrappers of a single layer, in the middle of a path."""


def find_flat_target(stem: str) -> Target | None:
    """Return the target of a flattened name, or None where `stem` has no such prefix.

    Any number of underscores may follow the prefix (Wan-Fun and Z-Image write two).
    """
    for prefix, component in FLAT.items():
        path = stem.removeprefix(prefix).lstrip("_")
        if stem.startswith(prefix) and path and "." not in path:
            return Target(component, path, flat=True)
    return None


def dotted_target(stem: str) -> Target:
    """Return the target of a dotted name, with every container taken off."""
    component, path = None, stem
    while (shorter := _without_container(path, component is None)) is not None:
        path, found = shorter
        component = found or component
    path = TRANSPARENT.sub("", path)
    if component is None or component == DENOISER:
        path = path.removeprefix("model.")
        component = "text_encoder" if path.startswith("text_model.") else DENOISER
    return Target(component, path)


def _without_container(path: str, nameless: bool) -> tuple[str, str | None] | None:
    for wrapper in WRAPPERS:
        if path.startswith(wrapper):
            return path.removeprefix(wrapper), None
    if not nameless:
        return None
    path_in_model = path.removeprefix("model.")
    for prefix, component in DOTTED.items():
        if path_in_model.startswith(prefix):
            return path_in_model.removeprefix(prefix), component
    return None
