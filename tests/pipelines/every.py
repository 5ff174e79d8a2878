"""Every pipeline class of the installed diffusers that takes adapters, with models of its own classes, tiny."""

from __future__ import annotations

import copy
import functools
import inspect
import re
import typing
import warnings
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders.lora_base import LoraBaseMixin
from torch import Tensor, nn

from lorry.names import DENOISERS, OTHERS
from lorry.pipelines.components import components_of
from models import tiny_t5_encoder, tiny_text_encoder, tiny_unet

Weights = dict[str, dict[str, Tensor]]
DEPTHS = (
    *("num_layers", "num_single_layers", "num_refiner_layers", "n_layers", "n_refiner_layers", "depth"),
    *("num_hidden_layers", "num_visual_blocks", "num_text_blocks", "approximator_layers"),
)
SMALL: dict[str, Any] = {
    **dict.fromkeys(DEPTHS, 1),
    **dict.fromkeys(
        ("num_attention_heads", "num_cross_attention_heads", "num_key_value_heads", "num_heads"), 2
    ),
    **dict.fromkeys(("n_heads", "n_kv_heads", "audio_num_attention_heads"), 2),
    **dict.fromkeys(("attention_head_dim", "cross_attention_head_dim", "audio_attention_head_dim"), 16),
    **dict.fromkeys(
        ("caption_channels", "joint_attention_dim", "pooled_projection_dim", "text_embed_dim"), 16
    ),
    **dict.fromkeys(
        ("text_dim", "time_dim", "in_text_dim", "in_text_dim2", "text_embed_2_dim", "freq_dim"), 16
    ),
    **dict.fromkeys(("cap_feat_dim", "context_in_dim", "condition_dim", "text_hidden_dim"), 16),
    **dict.fromkeys(("cross_attention_dim", "ffn_dim", "hidden_size", "caption_projection_dim", "dim"), 32),
    **dict.fromkeys(
        ("intermediate_size", "inner_dim", "model_dim", "ff_dim", "time_embed_dim", "embed_dim"), 32
    ),
    **dict.fromkeys(("audio_cross_attention_dim", "approximator_hidden_dim", "rope_max_seq_len"), 32),
    **dict.fromkeys(("image_embed_dim", "image_dim")),
    **dict.fromkeys(("sample_size", "pos_embed_max_size"), 8),
    **dict.fromkeys(("axes_dims_rope", "axes_dims", "rope_axes_dim"), (4, 4, 8)),
    "axes_lens": (8, 8, 8),
}
"""What a denoiser is made with, where it has an argument of the name."""
_CONNECTOR = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 1,
    "num_learnable_registers": 4,
}
_MOTION = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "AnimaTextConditioner": {"source_dim": 16, "target_dim": 16, "target_vocab_size": 32},
    "HiDreamImageTransformer2DModel": {"patch_size": 2, "in_channels": 16, "caption_channels": [8, 8]}
    | {"text_emb_dim": 8, "num_routed_experts": 4, "num_activated_experts": 2, "axes_dims_rope": (8, 4, 4)}
    | {"max_resolution": (16, 16), "llama_layers": [0, 1]},
    "HunyuanDiT2DModel": {"in_channels": 4, "patch_size": 2, "cross_attention_dim_t5": 16},
    "HunyuanImageTransformer2DModel": {"patch_size": (1, 1), "rope_axes_dim": (8, 8)},
    "HunyuanVideo15Transformer3DModel": {"image_embed_dim": 16},
    "Kandinsky3UNet": {"time_embedding_dim": 16, "groups": 4, "attention_head_dim": 8, "layers_per_block": 1}
    | {"block_out_channels": (8, 16, 16, 16), "cross_attention_dim": 16, "encoder_hid_dim": 16},
    "Krea2Transformer2DModel": {"text_num_attention_heads": 2, "text_num_key_value_heads": 2}
    | {"text_intermediate_size": 16},
    "LTX2TextConnectors": {"text_proj_in_factor": 2, "video_hidden_dim": 16, "audio_hidden_dim": 16}
    | {
        f"{side}_connector_{name}": value for side in ("video", "audio") for name, value in _CONNECTOR.items()
    },
    "PRXTransformer2DModel": {"axes_dim": [8, 8]},
    "RFD4ProteinaTransformer": {"nlayers": 1, "token_dim": 32, "nheads": 2, "dim_cond": 16, "t_emb_dim": 16}
    | {"pair_repr_dim": 16, "tri_mult_c": 8},
    "StableCascadeUNet": {
        "conditioning_dim": 16,
        "block_out_channels": (16, 16),
        "num_attention_heads": (2, 2),
    }
    | {"down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1), "clip_text_in_channels": 16}
    | {"clip_text_pooled_in_channels": 16, "clip_image_in_channels": 16, "switch_level": (False,)},
    "UNet3DConditionModel": {**_MOTION, "attention_head_dim": 8, "num_attention_heads": None}
    | {"down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D")}
    | {"up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")},
    "WanAnimateTransformer3DModel": {"motion_encoder_size": 16, "motion_style_dim": 16}
    | {"motion_encoder_dim": 16, "face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2}
    | {"motion_encoder_channel_sizes": {str(size): 8 for size in (4, 8, 16)}},
    "WanVACETransformer3DModel": {"vace_layers": [0]},
    "WuerstchenPrior": {"c_in": 4, "c": 16, "c_cond": 16, "c_r": 8, "nhead": 2},
}
"""What some need besides."""
PLACES = (*DENOISERS, *OTHERS)
ATTENTION = re.compile(r"(to_q|to_k|to_v|to_out\.0|q_proj|v_proj|qkv|to_qkv_mlp_proj)$")


class Stub(nn.Identity):
    """Stands in for a part that a pipeline looks at when it is made, and that no adapter is for."""

    config = SimpleNamespace(latent_dim=32, control_in_dim=0, z_dim=1, latents_mean=[0.0], latents_std=[1.0])
    t_scale, temperal_downsample = 1.0, (True, True)
    tokenizer = property(lambda self: self)

    def encode(self, *_: Any, **__: Any) -> list[int]:
        return [0]

    def apply_chat_template(self, *_: Any, **__: Any) -> list[list[int]]:
        return [[0]]


STUBS: dict[str, tuple[str, ...]] = {
    "Cosmos2_5_PredictBasePipeline": ("safety_checker", "vae"),
    "QwenImage21Pipeline": ("processor",),
    "RFD4ProteinaPipeline": ("vae",),
    "ZImageControlNetPipeline": ("controlnet",),
    "ZImageControlNetInpaintPipeline": ("controlnet",),
}
LEFT_OUT = {
    "StableDiffusionControlNetXSPipeline": "it puts a ControlNet of its own into the UNet",
    "StableDiffusionXLControlNetXSPipeline": "it puts a ControlNet of its own into the UNet",
}


def pipelines() -> Iterator[str]:
    """Yield the names of all classes that have a LoRA loader."""
    for name in dir(diffusers):
        if name.endswith("Pipeline") and name not in LEFT_OUT:
            found = getattr(diffusers, name)
            if inspect.isclass(found) and issubclass(found, LoraBaseMixin):
                yield name


def classes(cls: Any) -> dict[str, Any]:
    """The classes of a pipeline's models that adapters are for, by component."""
    if issubclass(cls, diffusers.ModularPipeline):
        hints: dict[str, Any] = {str(name): spec.type_hint for name, spec in cls()._component_specs.items()}
    else:
        hints = {name: p.annotation for name, p in inspect.signature(cls.__init__).parameters.items()}
    wanted = {name: hint for name, hint in hints.items() if name in PLACES or name.startswith("text_encoder")}
    return {name: _class(hint) for name, hint in wanted.items()}


def _class(hint: Any) -> Any:
    if isinstance(hint, str):
        return getattr(transformers, hint) if hasattr(transformers, hint) else getattr(diffusers, hint)
    return hint if inspect.isclass(hint) else typing.get_args(hint)[0]


@functools.cache
def _tiny(cls: Any) -> nn.Module:
    if cls is diffusers.UNet2DConditionModel:
        return tiny_unet()
    known = inspect.signature(cls.__init__).parameters
    chosen = {
        **{name: value for name, value in SMALL.items() if name in known},
        **CONFIGS.get(cls.__name__, {}),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls(**chosen)


def _model(component: str, cls: Any) -> nn.Module | None:
    """A tiny model; None for the encoders of language models, which no file trains."""
    if component in PLACES:
        return copy.deepcopy(_tiny(cls))
    if cls.__name__.startswith("CLIPText"):
        return tiny_text_encoder(projection="Projection" in cls.__name__)
    return tiny_t5_encoder() if cls.__name__ == "T5EncoderModel" else None


def build(name: str) -> Any:
    """A pipeline of a class, the same each time: all that no adapter is for is left out."""
    cls = getattr(diffusers, name)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # diffusers' of its own classes
        torch.manual_seed(0)  # some make layers of their own
        parts = {component: _model(component, found) for component, found in classes(cls).items()}
        if issubclass(cls, diffusers.ModularPipeline):
            pipe = cls()
            pipe.update_components(**{part: model for part, model in parts.items() if model is not None})
            return pipe
        empty = {
            argument: None
            for argument, p in inspect.signature(cls.__init__).parameters.items()
            if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and argument != "self"
        }
        return cls(**{**empty, **{part: Stub() for part in STUBS.get(name, ())}, **parts})


def adapter(pipe: Any, rank: int = 2) -> dict[str, Tensor]:
    """A LoRA on some attentions of each model that the pipeline has, under diffusers' names."""
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, Tensor] = {}
    for component, model in components_of(pipe).items():
        linear = {
            path: m
            for path, m in (model.named_modules() if model is not None else ())
            if type(m) is nn.Linear
        }
        chosen = {path: m for path, m in linear.items() if ATTENTION.search(path)} or linear
        for path, layer in list(chosen.items())[:8]:
            down = torch.randn(rank, layer.in_features, generator=generator)
            up = torch.randn(layer.out_features, rank, generator=generator)
            tensors |= {f"{component}.{path}.lora_A.weight": down, f"{component}.{path}.lora_B.weight": up}
    return tensors


def weights(pipe: Any) -> Weights:
    """Copies of the models' own weights, whoever has loaded adapters, by component and name."""
    return {
        component: {
            name.replace(".base_layer", ""): parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if "lora_" not in name
        }
        for component, model in components_of(pipe).items()
        if model is not None
    }


def largest_difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest difference, of the largest number of its tensor."""
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).abs().max() / one[n].abs().max().clamp(min=1e-9)) for n in one)
