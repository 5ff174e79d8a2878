"""Which component and module each tensor of a single-file checkpoint is.

    model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight      unet, SGM names
    model.diffusion_model.double_blocks.0.img_attn.qkv.weight                          transformer, Flux's names
    cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight   text_encoder, transformers' names
    conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight          text_encoder_2, OpenCLIP's names

Source: CompVis/latent-diffusion (`ldm/models/diffusion/ddpm.py`), Stability-AI/generative-models (`configs/inference`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from lorry.workflows.checkpoints.checkpoint import CLIP_ROOT, Place
from lorry.workflows.checkpoints.openclip import openclip_places
from lorry.workflows.checkpoints.original import transformer_places
from lorry.workflows.sgm import diffusers_path, is_sgm, layout_of

DENOISER_PREFIX = "model.diffusion_model."
TEXT_PREFIXES = {
    "cond_stage_model.transformer.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoders.t5xxl.transformer.": "text_encoder_3",
}
"""Text encoders under the names of transformers."""
OPENCLIP_PREFIXES = {
    "cond_stage_model.model.": "text_encoder",
    "conditioner.embedders.0.model.": "text_encoder",
    "conditioner.embedders.1.model.": "text_encoder_2",
}
BARE = {
    "input_blocks.": "unet",
    "down_blocks.": "unet",
    "encoder.block.": "text_encoder",
    "text_model.": "text_encoder",
}
"""How the keys of a file begin that holds one component alone; a file of any other keys is a transformer's."""

Found = dict[str, dict[str, Place]]


def sort_single_file(path: Path, tensors: Mapping[str, Tensor]) -> tuple[Found, dict[str, str]]:
    """Return the places of a single file's parameters by component, and the classes of components that names tell.

    The VAE and what else no adapter is for are left out.
    """
    prefixes = (DENOISER_PREFIX, *TEXT_PREFIXES, *OPENCLIP_PREFIXES)
    if not any(key.startswith(prefixes) for key in tensors):
        component = next(
            (c for start, c in BARE.items() if any(k.startswith(start) for k in tensors)), "transformer"
        )
        return _component(component, path, {key: key for key in tensors}, tensors)
    found, classes = Found(), dict[str, str]()
    if names := _under(tensors, DENOISER_PREFIX):
        denoiser = "unet" if any(is_sgm(name) for name in names) else "transformer"
        found, classes = _component(denoiser, path, names, tensors)
    for prefix, component in TEXT_PREFIXES.items():
        if names := _under(tensors, prefix):
            found |= _component(component, path, names, tensors)[0]
    for prefix, component in OPENCLIP_PREFIXES.items():
        if names := _under(tensors, prefix):
            found[component] = openclip_places(path, names, tensors)
    return found, classes


def _under(keys: Iterable[str], prefix: str) -> dict[str, str]:
    """Return {key without its prefix: key} of those that have it."""
    return {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}


def _component(
    component: str, path: Path, names: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> tuple[Found, dict[str, str]]:
    """Return the places of one component, whose names are diffusers', transformers' or its original checkpoint's."""
    if component == "transformer":
        places, model = transformer_places(path, names, tensors)
        return {component: places}, {component: model} if model else {}
    layout = layout_of(names)
    places = {}
    for name, key in names.items():
        module, _, parameter = name.removeprefix(CLIP_ROOT).rpartition(".")
        own = diffusers_path(module, layout) if component == "unet" and is_sgm(name) else module
        places[f"{own}.{parameter}" if own else parameter] = Place(path, (key,))
    return {component: places}, {}
