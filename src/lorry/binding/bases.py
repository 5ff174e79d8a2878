"""Which base model an adapter was made for, told from the names and shapes of its layers alone.

A live model is known by the same marks, so that an error can say "made for SDXL, and this is Stable Diffusion 1.5".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

from torch import nn

from lorry.adapters import Adapter
from lorry.binding.targets import weight_shape

Layer = tuple[str, tuple[int, ...]]
"""A layer's path, every `.` written as `_`, and the shape of its weight."""


@final
@dataclass(frozen=True, slots=True)
class Mark:
    """A layer that one base has and no other base above it in the table."""

    path: re.Pattern[str]
    sizes: tuple[int, ...] = ()
    """What the rows or the columns may count; any number where empty."""
    axis: int = 1

    def is_on(self, layer: Layer) -> bool:
        """Whether a layer has it."""
        path, shape = layer
        if not self.path.search(path):
            return False
        return not self.sizes or (len(shape) > self.axis and shape[self.axis] in self.sizes)


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
    """The class of its transformer in diffusers, where its original checkpoint has other names for the modules."""


def _mark(pattern: str, *sizes: int, axis: int = 1) -> Mark:
    return Mark(re.compile(pattern), sizes, axis)


_UNET = r"(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)_"
_JOINT = r"(?<!single_)(?<!joint_)transformer_blocks_"

BASES = (
    Base(
        "sdxl",
        "SDXL",
        (
            _mark(f"^{_UNET}.*attn2_to_[kv]$", 2048),
            _mark(f"^{_UNET}.*transformer_blocks_[1-9]"),
            _mark("^(add_embedding|label_emb)_"),
        ),
        "sdxl_base_v1-0",
        "stable-diffusion-xl-v1-base",
    ),
    Base(
        "sd2",
        "Stable Diffusion 2",
        (_mark(f"^{_UNET}.*attn2_to_[kv]$", 1024), _mark("encoder_layers_.*self_attn_[qkv]_proj$", 1024)),
        "sd_v2",
        "stable-diffusion-v2-768-v",
        diffusers_names=True,
    ),
    Base(
        "sd15",
        "Stable Diffusion 1",
        (_mark(f"^{_UNET}.*attn2_to_[kv]$", 768),),
        "sd_v1",
        "stable-diffusion-v1",
        diffusers_names=True,
    ),
    Base(
        "sd35-large",
        "Stable Diffusion 3.5 Large",
        (_mark(r"^(joint_blocks_|transformer_blocks_\d+_(attn|norm1|ff)_)", 2432),),
        transformer="SD3Transformer2DModel",
    ),
    Base(
        "sd3",
        "Stable Diffusion 3",
        (_mark("^joint_blocks_", 1536), _mark(r"^transformer_blocks_\d+_attn_(to|add)_.*", 1536)),
        "sd3m",
        "stable-diffusion-3-medium",
        transformer="SD3Transformer2DModel",
    ),
    Base(
        "krea2",
        "Krea 2",
        (
            _mark("^(text_fusion|txtfusion)_"),
            _mark(r"^blocks_\d+_(attn_w[qkvo]|mlp_(gate|up|down))$", 6144, 16384),
            _mark(r"^transformer_blocks_\d+_(attn_to_gate|ff_(gate|up|down))$", 6144, 16384),
            _mark(r"^transformer_blocks_\d+_attn_to_[kv]$", 1536, axis=0),
        ),
        "krea2",
        transformer="Krea2Transformer2DModel",
    ),
    Base(
        "flux2",
        "FLUX.2",
        (
            _mark("(to_qkv_mlp_proj$|double_stream_modulation_)"),
            _mark(r"single_blocks_\d+_linear1$", 27648, 36864, 55296, axis=0),
            _mark(r"^(double|single)_blocks_\d+_", 6144),
            _mark(r"^(single_)?transformer_blocks_\d+_attn_", 6144),
        ),
        transformer="Flux2Transformer2DModel",
    ),
    Base("chroma", "Chroma", (_mark("^distilled_guidance_layer_"),), transformer="ChromaTransformer2DModel"),
    Base(
        "hunyuan-video",
        "HunyuanVideo",
        (
            _mark(r"^double_blocks_\d+_(img|txt)_mlp_fc[12]$", 3072, 12288),
            _mark(r"^(double_blocks_19|single_blocks_3[89])_"),
            _mark(r"^single_transformer_blocks_3[89]_"),
            _mark("^context_embedder_token_refiner_"),
        ),
        transformer="HunyuanVideoTransformer3DModel",
    ),
    Base(
        "qwen-image",
        "Qwen-Image",
        (
            _mark(rf"^{_JOINT}\d+_(img|txt)_m(od|lp)_", 3072, 12288),
            _mark(rf"^{_JOINT}(2\d|[345]\d)_attn_", 3072),
        ),
    ),
    Base(
        "auraflow",
        "AuraFlow",
        (
            _mark(r"^(joint_transformer_blocks|(double|single)_layers)_\d+_", 3072),
            _mark(r"^single_transformer_blocks_\d+_ff_"),
        ),
        transformer="AuraFlowTransformer2DModel",
    ),
    Base(
        "cogvideox-2b",
        "CogVideoX 2B",
        (_mark(r"^((transformer_)?layers_\d+_attention|transformer_blocks_\d+_attn1)_", 1920),),
        transformer="CogVideoXTransformer3DModel",
    ),
    Base(
        "cogvideox-5b",
        "CogVideoX 5B",
        (
            _mark(r"^(transformer_)?layers_\d+_attention_(query_key_value|dense)", 3072),
            _mark(r"^transformer_blocks_\d+_norm[12]_linear$", 512),
        ),
        transformer="CogVideoXTransformer3DModel",
    ),
    Base(
        "flux",
        "FLUX.1",
        (
            _mark(r"^single_(transformer_)?blocks_\d+_", 3072, 12288, 15360),
            _mark(r"^double_blocks_\d+_", 3072, 12288),
            _mark(rf"^{_JOINT}\d+_(ff_|ff_context_|norm1)", 3072, 12288),
        ),
        "flux1",
        "flux-1-dev",
        transformer="FluxTransformer2DModel",
    ),
    Base(
        "wan-1.3b",
        "Wan 2.1 1.3B",
        (_mark(r"^blocks_\d+_(self_attn_[qkvo]|cross_attn_[qkvo]|attn[12]_to_[qkv])$", 1536),),
        transformer="WanTransformer3DModel",
    ),
    Base(
        "wan",
        "Wan 14B",
        (_mark(r"^blocks_\d+_(self_attn_[qkvo]|cross_attn_[qkvo]|attn[12]_to_[qkv]|ffn_\w+)$", 5120, 13824),),
        transformer="WanTransformer3DModel",
    ),
    Base(
        "ltx-video",
        "LTX-Video",
        (_mark(r"^transformer_blocks_\d+_attn[12]_to_[qkv]$", 2048),),
        transformer="LTXVideoTransformer3DModel",
    ),
    Base(
        "z-image",
        "Z-Image",
        (_mark(r"^layers_\d+_(attention|feed_forward)_", 3840),),
        transformer="ZImageTransformer2DModel",
    ),
    Base(
        "sana",
        "Sana 1.6B",
        (_mark(r"^(transformer_)?blocks_\d+_(attn|cross_attn|attn[12])_\w+", 2240),),
        transformer="SanaTransformer2DModel",
    ),
    Base("lumina2", "Lumina 2", (_mark(r"^layers_\d+_", 2304),), transformer="Lumina2Transformer2DModel"),
    Base("hidream", "HiDream", (_mark("^(double|single)_stream_blocks_"),)),
    Base(
        "ltx2",
        "LTX-2",
        (_mark(r"^transformer_blocks_\d+_(audio_|video_to_audio_)"),),
        transformer="LTX2VideoTransformer3DModel",
    ),
)
"""The bases that are known, in the order in which their marks are looked for.

Sources of the sizes: the configurations of the published checkpoints. Of the names in headers: kohya-ss/sd-scripts,
`library/sai_model_spec.py` and `library/train_util.py`; where nothing is known of those, there is none."""


def find_base(layers: Iterable[Layer]) -> Base | None:
    """Return the base whose marks are on these layers, or None where no known mark is."""
    listed = list(layers)
    return next(
        (base for base in BASES if any(mark.is_on(layer) for mark in base.marks for layer in listed)), None
    )


def base_of_adapter(adapter: Adapter) -> Base | None:
    """Return the base that an adapter was made for, as far as its names and shapes tell."""
    return find_base((entry.target.path.replace(".", "_"), entry.delta.shape) for entry in adapter.entries)


def base_of_models(models: Mapping[str, nn.Module | None]) -> Base | None:
    """Return the base that live models are, as far as their names and shapes tell."""
    return find_base(
        (path.replace(".", "_"), shape)
        for model in models.values()
        if model is not None
        for path, module in model.named_modules()
        if (shape := weight_shape(module)) is not None
    )


def find_base_called(name: str) -> Base | None:
    """Return the base of this name, or None."""
    return next((base for base in BASES if base.name == name), None)


def made_for(adapter: Adapter, models: Mapping[str, nn.Module | None]) -> str:
    """Say for an error which base an adapter was made for, and which this is, as far as that can be told."""
    its, this = base_of_adapter(adapter), base_of_models(models)
    if its is None or its == this:
        return "Was the adapter made for another base model?"
    other = f", and this is {this.title}" if this is not None else ""
    return f"The adapter was made for another base model: it is for {its.title}{other}."
