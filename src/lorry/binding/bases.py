"""Which base model an adapter was made for, told from the names and shapes of its layers alone.

A live model is known by the same marks, so that an error can say "made for SDXL, and this is Stable Diffusion 1.5".
Each layer that tells anything leaves the bases that have such a layer; what is left at the end are all that the file
may be for, and where that is more than one, all are said: "FLUX.1 or Chroma".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
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
    """Layers that a base has, and of all the other bases only those with a mark for them too."""

    path: re.Pattern[str]
    columns: tuple[int, ...] = ()
    """What the columns may count; any number where empty."""
    rows: tuple[int, ...] = ()

    def is_on(self, layer: Layer) -> bool:
        """Whether a layer has it."""
        path, shape = layer
        return (
            _is_one_of(shape[1:2], self.columns)
            and _is_one_of(shape[:1], self.rows)
            and bool(self.path.search(path))
        )


def _is_one_of(count: tuple[int, ...], allowed: tuple[int, ...]) -> bool:
    return not allowed or (bool(count) and count[0] in allowed)


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
    singles: int | None = None
    """How many single blocks it has: a file for all of them is of this base, or of one with as many."""
    like: str | None = None
    """The base whose layers it shares under the same names in diffusers."""


def _mark(pattern: str, *columns: int, rows: tuple[int, ...] = ()) -> Mark:
    return Mark(re.compile(pattern), columns, rows)


_SINGLE = re.compile(r"single_(transformer_)?blocks_(?P<number>\d+)_")
_UNET = r"(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)_"
_JOINT = r"(?<!single_)(?<!joint_)transformer_blocks_"


def _flux_blocks(double: str, single: str) -> tuple[Mark, ...]:
    """Of FLUX.1, Chroma and HunyuanVideo, whose blocks have such numbers."""
    return (
        _mark(rf"^single_transformer_blocks_{single}_(attn_to_[qkv]|proj_mlp|proj_out)$", 3072, 15360),
        _mark(rf"^single_blocks_{single}_linear[12]", 3072, 15360),
        _mark(rf"^double_blocks_{double}_(img|txt)_(attn|mlp)_", 3072, 12288),
        _mark(rf"^{_JOINT}{double}_(ff|ff_context)_net_", 3072, 12288),
    )


def _flux_modulation(double: str, single: str) -> tuple[Mark, ...]:
    """Of FLUX.1 and HunyuanVideo; Chroma has none."""
    return (
        _mark(
            rf"^(single_transformer_blocks_{single}_norm_linear|single_blocks_{single}_modulation_lin)", 3072
        ),
        _mark(rf"^double_blocks_{double}_(img|txt)_mod_lin", 3072),
        _mark(rf"^{_JOINT}{double}_norm1(_context)?_linear$", 3072),
    )


_FLUX = (r"(\d|1[0-8])", r"([12]?\d|3[0-7])")
"""The numbers of double and of single blocks."""
_HUNYUAN = (r"1?\d", r"[123]?\d")

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
        (_mark(rf"^(joint_blocks_|{_JOINT}\d+_(attn|norm1|norm1_context|ff|ff_context)_)", 2432),),
        transformer="SD3Transformer2DModel",
    ),
    Base(
        "sd3",
        "Stable Diffusion 3",
        (_mark("^joint_blocks_", 1536), _mark(rf"^{_JOINT}\d+_attn_(to|add)_.*", 1536)),
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
            _mark(rf"^{_JOINT}\d+_(attn_to_gate|ff_(gate|up|down))$", 6144, 16384),
            _mark(rf"^{_JOINT}\d+_attn_to_[kv]$", 6144, rows=(1536,)),
            _mark(rf"^{_JOINT}\d+_attn_to_(q|out_0)$", 6144),
        ),
        "krea2",
        transformer="Krea2Transformer2DModel",
    ),
    Base(
        "flux2",
        "FLUX.2",
        (
            _mark("(to_qkv_mlp_proj$|double_stream_modulation_)"),
            _mark(r"single_blocks_\d+_linear1$", rows=(27648, 36864, 55296)),
            _mark(r"^(double|single)_blocks_\d+_", 6144),
            _mark(rf"^{_JOINT}\d+_attn_", 6144, rows=(6144,)),
            _mark(r"^single_transformer_blocks_\d+_attn_", 6144, 24576),
        ),
        transformer="Flux2Transformer2DModel",
        singles=48,
    ),
    Base(
        "flux",
        "FLUX.1",
        (*_flux_blocks(*_FLUX), *_flux_modulation(*_FLUX)),
        "flux1",
        "flux-1-dev",
        transformer="FluxTransformer2DModel",
        singles=38,
        like="flux",
    ),
    Base(
        "chroma",
        "Chroma",
        (_mark("^distilled_guidance_layer_"), *_flux_blocks(*_FLUX)),
        transformer="ChromaTransformer2DModel",
        singles=38,
        like="flux",
    ),
    Base(
        "hunyuan-video",
        "HunyuanVideo",
        (
            _mark(r"^double_blocks_\d+_(img|txt)_mlp_fc[12]$", 3072, 12288),
            _mark("^context_embedder_token_refiner_"),
            *_flux_blocks(*_HUNYUAN),
            *_flux_modulation(*_HUNYUAN),
        ),
        transformer="HunyuanVideoTransformer3DModel",
        singles=40,
        like="flux",
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
            _mark(r"^single_transformer_blocks_\d+_(ff|norm1)_"),
            _mark(r"^single_transformer_blocks_([12]?\d|3[01])_attn_to_([qkv]|out_0)$", 3072),
        ),
        transformer="AuraFlowTransformer2DModel",
        singles=32,
    ),
    Base(
        "cogvideox-2b",
        "CogVideoX 2B",
        (
            _mark(r"^((transformer_)?layers_\d+_attention|transformer_blocks_\d+_attn1)_", 1920),
            _mark(r"^transformer_blocks_\d+_norm[12]_linear$", 512, rows=(11520,)),
        ),
        transformer="CogVideoXTransformer3DModel",
    ),
    Base(
        "cogvideox-5b",
        "CogVideoX 5B",
        (
            _mark(r"^(transformer_)?layers_\d+_attention_(query_key_value|dense)", 3072),
            _mark(r"^transformer_blocks_\d+_norm[12]_linear$", 512, rows=(18432,)),
            _mark(r"^transformer_blocks_\d+_ff_net_", 3072, 12288),
        ),
        transformer="CogVideoXTransformer3DModel",
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
        (_mark(r"^transformer_blocks_\d+_attn[12]_to_[qkv]$", 2048, rows=(2048,)),),
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
    Base(
        "lumina2",
        "Lumina 2",
        (_mark(r"^layers_\d+_(attention|attn|feed_forward)_", 2304),),
        transformer="Lumina2Transformer2DModel",
    ),
    Base("hidream", "HiDream", (_mark("^(double|single)_stream_blocks_"),)),
    Base(
        "ltx2",
        "LTX-2",
        (_mark(r"^transformer_blocks_\d+_(audio_|video_to_audio_)"),),
        transformer="LTX2VideoTransformer3DModel",
    ),
)
"""The bases that are known; of those that share layers, the likeliest first.

Sources of the sizes: the configurations of the published checkpoints. Of the names in headers: kohya-ss/sd-scripts,
`library/sai_model_spec.py` and `library/train_util.py`; where nothing is known of those, there is none."""


def find_bases(layers: Iterable[Layer]) -> tuple[Base, ...]:
    """Return all bases that these layers may be of, the likeliest first; none where no known mark is on them."""
    left, singles = list[Base](), set[int]()
    for layer in layers:
        if single := _SINGLE.match(layer[0]):
            singles.add(int(single["number"]))
        having = _having(layer)
        left = [base for base in left or having if not having or base in having]
        if having and not left:
            return ()  # layers of several bases
    whole = tuple(base for base in left if base.singles and singles == set(range(base.singles)))
    return whole or tuple(left)


def _having(layer: Layer) -> tuple[Base, ...]:
    return tuple(base for base in BASES if any(mark.is_on(layer) for mark in base.marks))


def find_base(layers: Iterable[Layer]) -> Base | None:
    """Return the base that these layers are of, or None where they do not tell.

    Of bases that share those layers under the same names it is the likeliest.
    """
    found = find_bases(layers)
    return found[0] if len({base.like or base.name for base in found}) == 1 else None


def base_of_adapter(adapter: Adapter) -> Base | None:
    """Return the base that an adapter was made for, as `find_base` does."""
    return find_base(_layers(adapter))


def is_told(adapter: Adapter) -> bool:
    """Whether an adapter can be of one base alone."""
    return len(find_bases(_layers(adapter))) == 1


def titles_of_adapter(adapter: Adapter) -> str | None:
    """Say what an adapter was made for, as far as its names and shapes tell: "SDXL", "FLUX.1 or Chroma"."""
    return " or ".join(base.title for base in find_bases(_layers(adapter))) or None


def _layers(adapter: Adapter) -> Iterator[Layer]:
    return ((entry.target.path.replace(".", "_"), entry.delta.shape) for entry in adapter.entries)


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
    its, this = find_bases(_layers(adapter)), base_of_models(models)
    if not its or this in its:
        return "Was the adapter made for another base model?"
    other = f", and this is {this.title}" if this is not None else ""
    titles = " or ".join(base.title for base in its)
    return f"The adapter was made for another base model: it is for {titles}{other}."
