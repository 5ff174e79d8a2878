"""Models without weights: the components of published base models, or of a pipeline's folder, on the meta device.

They settle what a file's names mean and which shapes are right, where no live pipeline is at hand.
"""

from __future__ import annotations

import importlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from lorry.errors import AdapterNotFoundError, StateError, did_you_mean
from lorry.files import read_safetensors
from lorry.names import DENOISERS, OTHERS, TEXT_ENCODERS

Config = Mapping[str, Any]
SD15: Config = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
SD2: Config = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "sample_size": 96,
    "use_linear_projection": True,
}
SDXL: Config = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
SD3: Config = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}
SD35_LARGE: Config = {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}
COGVIDEOX_5B: Config = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
HIDREAM: Config = {"patch_size": 2, "in_channels": 16, "caption_channels": [4096, 4096]} | {
    "axes_dims_rope": (64, 32, 32),
    "llama_layers": list(range(48)),
}
WAN_1_3B: Config = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
WAN_I2V: Config = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
WAN_5B: Config = {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30} | {
    "in_channels": 48,
    "out_channels": 48,
}
WAN_VACE_1_3B: Config = {**WAN_1_3B, "vace_layers": list(range(0, 30, 2))}
SANA_600M: Config = {"num_attention_heads": 36, "num_layers": 28} | {
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
}
COSMOS_2B: Config = {"num_attention_heads": 16, "extra_pos_embed_type": None}
COSMOS_14B: Config = {"num_attention_heads": 40, "num_layers": 36, "extra_pos_embed_type": None}
COGVIEW4: Config = {"num_attention_heads": 32, "attention_head_dim": 128, "num_layers": 28}
FRAMEPACK: Config = {"has_image_proj": True, "has_clean_x_embedder": True}
HUNYUAN_DIT: Config = {"in_channels": 4, "hidden_size": 1408, "patch_size": 2, "mlp_ratio": 4.3637}
STABLE_AUDIO_3_SMALL: Config = {"embed_dim": 1024, "depth": 20, "num_heads": 16} | {
    "use_differential_attention": False
}

CLIP_L: Config = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
CLIP_H: Config = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
}
CLIP_G: Config = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
T5_XXL: Config = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
BERT_LARGE: Config = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
T5_XL: Config = {**T5_XXL, "d_model": 2048, "d_ff": 5120, "num_heads": 32}
T5_BASE: Config = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
GEMMA2_2B: Config = {"head_dim": 256, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26}
QWEN3_4B: Config = {
    "head_dim": 128,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
LLAMA3_8B: Config = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


@final
@dataclass(frozen=True, slots=True)
class Part:
    """One component: its class, and what differs from the class's own configuration."""

    cls: str
    config: Config = field(default_factory=dict)


_L = Part("CLIPTextModel", CLIP_L)
_L_PROJECTED = Part("CLIPTextModelWithProjection", {**CLIP_L, "projection_dim": 768})
_G = Part("CLIPTextModelWithProjection", CLIP_G)
_T5, _UMT5 = Part("T5EncoderModel", T5_XXL), Part("UMT5EncoderModel", T5_XXL)
_UNET, _SD3, _FLUX = "UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel"
_SD3_ENCODERS = {"text_encoder": _L_PROJECTED, "text_encoder_2": _G, "text_encoder_3": _T5}

ARCHITECTURES: Mapping[str, Mapping[str, Part]] = {
    "sd15": {"unet": Part(_UNET, SD15), "text_encoder": _L},
    "sd2": {"unet": Part(_UNET, SD2), "text_encoder": Part("CLIPTextModel", CLIP_H)},
    "sdxl": {"unet": Part(_UNET, SDXL), "text_encoder": _L, "text_encoder_2": _G},
    "sd3": {"transformer": Part(_SD3, SD3), **_SD3_ENCODERS},
    "sd35-large": {"transformer": Part(_SD3, SD35_LARGE), **_SD3_ENCODERS},
    "flux": {
        "transformer": Part(_FLUX, {"guidance_embeds": True}),
        "text_encoder": _L,
        "text_encoder_2": _T5,
    },
    "flux2": {"transformer": Part("Flux2Transformer2DModel")},
    "flux3": {"transformer": Part("Flux3Transformer2DModel")},
    "chroma": {"transformer": Part("ChromaTransformer2DModel"), "text_encoder": _T5},
    "qwen-image": {"transformer": Part("QwenImageTransformer2DModel")},
    "hunyuan-video": {
        "transformer": Part("HunyuanVideoTransformer3DModel"),
        "text_encoder": Part("LlamaModel", LLAMA3_8B),
        "text_encoder_2": _L,
    },
    "wan": {"transformer": Part("WanTransformer3DModel"), "text_encoder": _UMT5},
    "wan-1.3b": {"transformer": Part("WanTransformer3DModel", WAN_1_3B), "text_encoder": _UMT5},
    "ltx-video": {"transformer": Part("LTXVideoTransformer3DModel"), "text_encoder": _T5},
    "ltx2": {
        "transformer": Part("LTX2VideoTransformer3DModel"),
        "connectors": Part("LTX2TextConnectors"),
    },
    "krea2": {"transformer": Part("Krea2Transformer2DModel")},
    "hidream": {
        "transformer": Part("HiDreamImageTransformer2DModel", HIDREAM),
        "text_encoder": _L_PROJECTED,
        "text_encoder_2": _G,
        "text_encoder_3": _T5,
        "text_encoder_4": Part("LlamaForCausalLM", LLAMA3_8B),
    },
    "auraflow": {
        "transformer": Part("AuraFlowTransformer2DModel"),
        "text_encoder": Part("UMT5EncoderModel", T5_XL),
    },
    "sana": {
        "transformer": Part("SanaTransformer2DModel"),
        "text_encoder": Part("Gemma2Model", GEMMA2_2B),
    },
    "cogvideox-2b": {"transformer": Part("CogVideoXTransformer3DModel"), "text_encoder": _T5},
    "cogvideox-5b": {
        "transformer": Part("CogVideoXTransformer3DModel", COGVIDEOX_5B),
        "text_encoder": _T5,
    },
    "z-image": {
        "transformer": Part("ZImageTransformer2DModel"),
        "text_encoder": Part("Qwen3Model", QWEN3_4B),
    },
    "lumina2": {
        "transformer": Part("Lumina2Transformer2DModel", {"cap_feat_dim": 2304}),
        "text_encoder": Part("Gemma2Model", GEMMA2_2B),
    },
    "svd": {"unet": Part("UNetSpatioTemporalConditionModel")},
    "modelscope-video": {
        "unet": Part("UNet3DConditionModel"),
        "text_encoder": Part("CLIPTextModel", CLIP_H),
    },
    "animatediff": {
        "unet": Part("UNetMotionModel", {"cross_attention_dim": 768}),
        "text_encoder": _L,
    },
    "wan-5b": {"transformer": Part("WanTransformer3DModel", WAN_5B), "text_encoder": _UMT5},
    "wan-vace": {"transformer": Part("WanVACETransformer3DModel"), "text_encoder": _UMT5},
    "wan-vace-1.3b": {
        "transformer": Part("WanVACETransformer3DModel", WAN_VACE_1_3B),
        "text_encoder": _UMT5,
    },
    "wan-i2v": {"transformer": Part("WanTransformer3DModel", WAN_I2V), "text_encoder": _UMT5},
    "wan-animate": {
        "transformer": Part("WanAnimateTransformer3DModel", {"added_kv_proj_dim": 5120}),
        "text_encoder": _UMT5,
    },
    "sana-video": {
        "transformer": Part("SanaVideoTransformer3DModel", {"mlp_ratio": 3.0}),
        "text_encoder": Part("Gemma2Model", GEMMA2_2B),
    },
    "sana-wm": {"transformer": Part("SanaWMTransformer3DModel")},
    "framepack": {
        "transformer": Part("HunyuanVideoFramepackTransformer3DModel", FRAMEPACK),
        "text_encoder": Part("LlamaModel", LLAMA3_8B),
        "text_encoder_2": _L,
    },
    "hunyuan-video-1.5": {"transformer": Part("HunyuanVideo15Transformer3DModel")},
    "hunyuan-image": {"transformer": Part("HunyuanImageTransformer2DModel")},
    "hunyuan-dit": {
        "transformer": Part("HunyuanDiT2DModel", HUNYUAN_DIT),
        "text_encoder": Part("BertModel", BERT_LARGE),
        "text_encoder_2": Part("T5EncoderModel", T5_XL),
    },
    "pixart": {
        "transformer": Part("PixArtTransformer2DModel", {"caption_channels": 4096}),
        "text_encoder": _T5,
    },
    "sana-600m": {
        "transformer": Part("SanaTransformer2DModel", SANA_600M),
        "text_encoder": Part("Gemma2Model", GEMMA2_2B),
    },
    "cosmos-2b": {"transformer": Part("CosmosTransformer3DModel", COSMOS_2B)},
    "cosmos-7b": {"transformer": Part("CosmosTransformer3DModel")},
    "cosmos-14b": {"transformer": Part("CosmosTransformer3DModel", COSMOS_14B)},
    "cogview4": {"transformer": Part("CogView4Transformer2DModel", COGVIEW4)},
    "cogview3": {"transformer": Part("CogView3PlusTransformer2DModel"), "text_encoder": _T5},
    "mochi": {"transformer": Part("MochiTransformer3DModel"), "text_encoder": _T5},
    "stable-audio": {
        "transformer": Part("StableAudioDiTModel"),
        "text_encoder": Part("T5EncoderModel", T5_BASE),
    },
    "stable-audio-3": {
        "transformer": Part("StableAudio3DiTModel"),
        "duration_embedder": Part("StableAudio3DurationEmbedder"),
    },
    "stable-audio-3-small": {
        "transformer": Part("StableAudio3DiTModel", STABLE_AUDIO_3_SMALL),
        "duration_embedder": Part("StableAudio3DurationEmbedder"),
    },
}
"""By the name of the base. Source: the `config.json` files of the published checkpoints, on the Hub; for HiDream,
CogVideoX 5B and the language models, the sizes that their authors tell; else the classes' own defaults."""


def skeleton(base: str | os.PathLike[str], *, weights: bool = False) -> dict[str, nn.Module]:
    """Return the components of a base model on the meta device, where they take no memory.

    Args:
        base: one of `ARCHITECTURES`, or the folder of a pipeline or of one of its components.
        weights: of a folder, give the components the weights that are there, mapped from the disk.

    Raises:
        StateError: there is no architecture of this name and no such folder, or its components are not known.
    """
    if str(base) in ARCHITECTURES:
        return {name: _built(part.cls, part.config) for name, part in ARCHITECTURES[str(base)].items()}
    folder = Path(base).expanduser()
    if not folder.is_dir():
        raise StateError(
            f"There is no base model {str(base)!r}, and no folder of that name.{did_you_mean(str(base), ARCHITECTURES)}"
            f" Known: {', '.join(ARCHITECTURES)}."
        )
    found = {name: _from_folder(path, weights) for name, path in _component_folders(folder).items()}
    if not found:
        raise StateError(
            f"{folder} is no pipeline: expected folders such as `unet`, `transformer` or `text_encoder`, each with a "
            "config.json."
        )
    return found


def _component_folders(folder: Path) -> dict[str, Path]:
    names = (*DENOISERS, *OTHERS, *TEXT_ENCODERS)
    if (folder / "config.json").is_file():
        config = _config(folder)
        named = next((name for name in names if folder.name == name), None)
        is_unet = str(config.get("_class_name", "")).startswith("UNet")
        return {
            named
            or ("unet" if is_unet else "transformer" if "_class_name" in config else "text_encoder"): folder
        }
    return {name: folder / name for name in names if (folder / name / "config.json").is_file()}


def _config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text("utf-8"))
    except ValueError as error:
        raise StateError(f"{folder / 'config.json'}: expected JSON, got: {error}.") from error


def _from_folder(folder: Path, weights: bool) -> nn.Module:
    config = _config(folder)
    cls = config.get("_class_name") or next(iter(config.get("architectures") or ()), None)
    if cls is None:
        raise StateError(
            f"{folder / 'config.json'} names no class: expected `_class_name` or `architectures`."
        )
    model = _built(str(cls), config)
    if weights:
        _give_weights(model, folder)
    return model


def _built(name: str, config: Config) -> nn.Module:
    cls = _class(name)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of diffusers, about parts of its own models
        made = (
            cls.from_config(dict(config)) if hasattr(cls, "from_config") else cls(cls.config_class(**config))
        )
    return made.to("meta")  # Stable Video Diffusion makes numbers of its own on the CPU


def _class(name: str) -> Any:
    for package in ("diffusers", "transformers", "diffusers.pipelines.ltx2.connectors"):
        found = getattr(importlib.import_module(package), name, None)
        if found is not None:
            return found
    raise StateError(f"There is no model class {name!r} in the installed diffusers and transformers.")


def _give_weights(model: nn.Module, folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise AdapterNotFoundError(f"{folder}: there are no safetensors files with weights.")
    tensors = {key: tensor for path in files for key, tensor in read_safetensors(path).tensors.items()}
    known = {
        key.removeprefix("text_model.") if key not in model.state_dict() else key: t
        for key, t in tensors.items()
    }
    model.load_state_dict(known, strict=False, assign=True)
