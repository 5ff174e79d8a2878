"""Record what ComfyUI calls the modules of the models that diffusers has too: `tests/binding/comfyui.json`.

    PYTHONPATH=src:. python -m scripts.names.comfyui CHECKOUT

builds ComfyUI's own models out of a checkout of Comfy-Org/ComfyUI on the meta device, at full width with few blocks,
and writes down each parameter's name and shape. It needs what ComfyUI imports (einops, psutil, torchvision). Names are
facts, and nothing else of that program is kept; `tests/binding/test_comfyui.py` holds them against the models of
diffusers.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

RECORD = Path(__file__).resolve().parents[2] / "tests" / "binding" / "comfyui.json"
_BLOCK = re.compile(r"(?<=\.)\d+(?=\.)")


class Known(NamedTuple):
    """A model of ComfyUI's, and the class in diffusers that is the same model."""

    model: str
    """In diffusers."""
    module: str
    """Below `comfy.ldm`."""
    name: str
    arguments: Mapping[str, Any]
    config: Mapping[str, Any] = {}
    """What differs from the defaults of diffusers' class, for a model of the same shapes."""
    none: str = ""
    """A pattern of the parameters that diffusers' model has not, or keeps in a class of its own that is no layer."""
    missing: tuple[str, ...] = ()
    """Of diffusers' parameters, those that ComfyUI's model has not, or that are among `none`."""


_FLUX = {
    "in_channels": 16,
    "patch_size": 2,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
_CHROMA = {name: value for name, value in _FLUX.items() if name != "guidance_embed"}
_FLUX2 = {
    **_FLUX,
    "in_channels": 128,
    "out_channels": 128,
    "patch_size": 1,
    "vec_in_dim": None,
    "context_in_dim": 15360,
    "hidden_size": 6144,
    "mlp_ratio": 3.0,
    "num_heads": 48,
    "axes_dim": [32, 32, 32, 32],
    "qkv_bias": False,
    "ops_bias": False,
    "global_modulation": True,
    "mlp_silu_act": True,
}
_HUNYUAN = {
    **{name: value for name, value in _FLUX.items() if name != "txt_ids_dims"},
    "patch_size": [1, 2, 2],
    "theta": 256,
    "meanflow": False,
    "meanflow_sum": False,
    "byt5": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
}
_WAN = {
    "dim": 5120,
    "out_dim": 16,
    "num_heads": 40,
    "ffn_dim": 13824,
    "num_layers": 2,
    "patch_size": (1, 2, 2),
    "freq_dim": 256,
    "window_size": (-1, -1),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "in_dim": 16,
}
_IMAGE = {"image_dim": 1280, "added_kv_proj_dim": 5120}
_PIXART = {"num_heads": 16, "hidden_size": 1152, "in_channels": 4, "depth": 2, "input_size": 128}
_PIXART |= {"patch_size": 2, "model_max_length": 300, "pe_interpolation": 2}
_COSMOS = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "concat_padding_mask": True,
    "pos_emb_cls": "rope3d",
    "pos_emb_interpolation": "crop",
    "use_adaln_lora": True,
    "adaln_lora_dim": 256,
    "num_blocks": 2,
}
_MOCHI = {
    "depth": 3,
    "patch_size": 2,
    "num_heads": 24,
    "hidden_size_x": 3072,
    "hidden_size_y": 1536,
    "mlp_ratio_x": 4.0,
    "mlp_ratio_y": 4.0,
    "learn_sigma": False,
    "in_channels": 12,
    "qk_norm": True,
    "qkv_bias": False,
    "use_t5": True,
    "t5_feat_dim": 4096,
    "t5_token_length": 256,
}
_HIDREAM = {"num_layers": 2, "num_single_layers": 2, "patch_size": 2, "in_channels": 16, "out_channels": 16}
_HIDREAM |= {"attention_head_dim": 128, "num_attention_heads": 20, "caption_channels": [4096, 4096]}
_HIDREAM |= {"text_emb_dim": 2048, "num_routed_experts": 4, "num_activated_experts": 2}
_HIDREAM |= {"axes_dims_rope": (64, 32, 32), "max_resolution": (128, 128), "llama_layers": [0, 1, 2, 3]}
_CONTEXT = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 192}}

KNOWN = (
    Known(
        *("FluxTransformer2DModel", "flux.model", "Flux", _FLUX),
        {"num_layers": 2, "num_single_layers": 2, "guidance_embeds": True},
    ),
    Known(
        *("Flux2Transformer2DModel", "flux.model", "Flux", _FLUX2),
        {"num_layers": 2, "num_single_layers": 2},
    ),
    Known(
        *("OvisImageTransformer2DModel", "flux.model", "Flux"),
        {**_FLUX, "vec_in_dim": None, "context_in_dim": 2048, "guidance_embed": False, "yak_mlp": True}
        | {"txt_norm": True},
        {"num_layers": 2, "num_single_layers": 2},
    ),
    Known(
        *("LongCatImageTransformer2DModel", "flux.model", "Flux"),
        {**_FLUX, "vec_in_dim": None, "context_in_dim": 3584, "guidance_embed": False},
        {"num_layers": 2, "num_single_layers": 2},
    ),
    Known(
        *("ChromaTransformer2DModel", "chroma.model", "Chroma"),
        {**_CHROMA, "in_channels": 64, "out_channels": 64, "vec_in_dim": None, "in_dim": 64, "out_dim": 3072}
        | {"hidden_dim": 5120, "n_layers": 2},
        {"num_layers": 2, "num_single_layers": 2, "approximator_layers": 2},
    ),
    Known(
        *("HunyuanVideoTransformer3DModel", "hunyuan_video.model", "HunyuanVideo", _HUNYUAN),
        {"num_layers": 2, "num_single_layers": 2},
    ),
    Known(
        *("HunyuanVideo15Transformer3DModel", "hunyuan_video.model", "HunyuanVideo"),
        {**_HUNYUAN, "in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1], "vec_in_dim": None}
        | {"context_in_dim": 3584, "hidden_size": 2048, "num_heads": 16, "depth_single_blocks": 0}
        | {"byt5": True, "guidance_embed": False, "use_cond_type_embedding": True}
        | {"vision_in_dim": 1152, "meanflow_sum": True},
        {"num_layers": 2},
        "cond_type_embedding",
    ),
    Known(
        *("HunyuanImageTransformer2DModel", "hunyuan_video.model", "HunyuanVideo"),
        {**_HUNYUAN, "in_channels": 64, "out_channels": 64, "patch_size": [1, 1], "axes_dim": [64, 64]}
        | {"vec_in_dim": None, "meanflow": True, "byt5": True, "context_in_dim": 3584}
        | {"hidden_size": 3584, "num_heads": 28},
        {"num_layers": 2, "num_single_layers": 2, "text_embed_2_dim": 1472, "use_meanflow": True}
        | {"guidance_embeds": True},
    ),
    Known(
        *("WanTransformer3DModel", "wan.model", "WanModel"),
        {**_WAN, "model_type": "i2v", "in_dim": 36},
        {**_IMAGE, "num_layers": 2, "in_channels": 36},
    ),
    Known(
        *("WanVACETransformer3DModel", "wan.model", "VaceWanModel"),
        {**_WAN, "model_type": "vace", "vace_in_dim": 96, "vace_layers": 2},
        {"num_layers": 2, "vace_layers": [0, 1], "vace_in_channels": 96},
    ),
    Known(
        *("WanAnimateTransformer3DModel", "wan.model_animate", "AnimateWanModel"),
        {**_WAN, "model_type": "animate", "in_dim": 36, "num_layers": 10},
        {"num_layers": 10, "added_kv_proj_dim": 5120},
        r"motion_encoder\.",
        ("motion_encoder.motion_synthesis_weight",),
    ),
    Known(
        *("MochiTransformer3DModel", "genmo.joint_model.asymm_models_joint", "AsymmDiTJoint", _MOCHI),
        {"num_layers": 3},
    ),
    Known(
        *("LTXVideoTransformer3DModel", "lightricks.model", "LTXVModel"),
        {"num_layers": 2, "attention_head_dim": 64, "cross_attention_dim": 2048},
        {"num_layers": 2},
    ),
    Known(
        *("LTX2VideoTransformer3DModel", "lightricks.av_model", "LTXAVModel"),
        {"num_layers": 2},
        {"num_layers": 2},
    ),
    Known(
        *("PixArtTransformer2DModel", "pixart.pixartms", "PixArtMS", {**_PIXART, "micro_condition": True}),
        {"num_layers": 2, "caption_channels": 4096, "sample_size": 128, "use_additional_conditions": True},
        r"pos_embed$|y_embedder\.y_embedding",
    ),
    Known(
        *("CosmosTransformer3DModel", "cosmos.model", "GeneralDIT"),
        {**_COSMOS, "model_channels": 4096, "num_heads": 32, "block_config": "FA-CA-MLP"}
        | {"pos_emb_learnable": False, "block_x_format": "THWBD", "affline_emb_norm": True}
        | {"extra_per_block_abs_pos_emb": False},
        {"num_layers": 2, "extra_pos_embed_type": None},
        "logvar|pos_embedder",
    ),
    Known(
        *("CosmosTransformer3DModel", "cosmos.predict2", "MiniTrainDIT"),
        {**_COSMOS, "model_channels": 2048, "num_heads": 16, "crossattn_emb_channels": 1024}
        | {"pos_emb_learnable": True, "min_fps": 1, "max_fps": 30, "extra_per_block_abs_pos_emb": False},
        {"num_layers": 2, "num_attention_heads": 16, "extra_pos_embed_type": None},
        "pos_embedder",
    ),
    Known(
        *("CosmosTransformer3DModel", "anima.model", "Anima"),
        {**_COSMOS, "model_channels": 2048, "num_heads": 16, "crossattn_emb_channels": 1024}
        | {"pos_emb_learnable": True, "min_fps": 1, "max_fps": 30, "extra_per_block_abs_pos_emb": False},
        {"num_layers": 2, "num_attention_heads": 16, "extra_pos_embed_type": None},
        r"pos_embedder|llm_adapter\.",
    ),
    Known(
        *("Kandinsky5Transformer3DModel", "kandinsky5.model", "Kandinsky5"),
        {"num_visual_blocks": 2},
        {"in_visual_dim": 16, "out_visual_dim": 16, "time_dim": 512, "model_dim": 1792, "ff_dim": 7168}
        | {"visual_cond": True, "num_visual_blocks": 2},
    ),
    Known(
        *("Lumina2Transformer2DModel", "lumina.model", "NextDiT"),
        {"patch_size": 2, "in_channels": 16, "dim": 2304, "cap_feat_dim": 2304, "n_layers": 2, "n_heads": 24}
        | {"n_kv_heads": 8, "qk_norm": True, "axes_dims": [32, 32, 32], "axes_lens": [300, 512, 512]},
        {"num_layers": 2, "cap_feat_dim": 2304},
        "norm_final",
    ),
    Known(
        *("ZImageTransformer2DModel", "lumina.model", "NextDiT"),
        {"patch_size": 2, "in_channels": 16, "dim": 3840, "cap_feat_dim": 2560, "n_layers": 2, "n_heads": 30}
        | {"n_kv_heads": 30, "qk_norm": True, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512]}
        | {"ffn_dim_multiplier": 8.0 / 3.0, "z_image_modulation": True, "pad_tokens_multiple": 32},
        {"n_layers": 2},
    ),
    Known(
        *("HiDreamImageTransformer2DModel", "hidream.model", "HiDreamImageTransformer2DModel", _HIDREAM),
        _HIDREAM,
        r".*\.gate\.weight",
    ),
    Known(
        *("QwenImageTransformer2DModel", "qwen_image.model", "QwenImageTransformer2DModel"),
        {"in_channels": 64, "num_layers": 2},
        {"num_layers": 2},
    ),
    Known(
        *("AuraFlowTransformer2DModel", "aura.mmdit", "MMDiT"),
        {"max_seq": 1024, "cond_seq_dim": 2048, "n_double_layers": 2, "n_layers": 4},
        {"num_mmdit_layers": 2, "num_single_dit_layers": 2},
    ),
    Known(
        *("HunyuanDiT2DModel", "hydit.models", "HunYuanDiT"),
        {"depth": 4, "hidden_size": 1408, "mlp_ratio": 4.3637, "size_cond": True, "use_style_cond": True},
        {"num_layers": 4, "in_channels": 4, "hidden_size": 1408, "patch_size": 2, "mlp_ratio": 4.3637},
        "style_embedder",
    ),
    Known(
        *("StableAudioDiTModel", "audio.dit", "AudioDiffusionTransformer", {"depth": 2}),
        {"num_layers": 2},
        r"timestep_features|.*inv_freq",
        ("time_proj",),
    ),
    Known(
        *("SD3Transformer2DModel", "modules.diffusionmodules.mmdit", "OpenAISignatureMMDITWrapper"),
        {"depth": 3, "patch_size": 2, "in_channels": 16, "out_channels": 16, "adm_in_channels": 2048}
        | {"context_embedder_config": _CONTEXT, "num_patches": 36864, "pos_embed_max_size": 192}
        | {"qk_norm": "rms", "input_size": None, "pos_embed_scaling_factor": None}
        | {"x_block_self_attn_layers": [0, 1]},
        {"num_layers": 3, "num_attention_heads": 3, "qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}
        | {"joint_attention_dim": 4096, "pooled_projection_dim": 2048, "caption_projection_dim": 192},
        "pos_embed$",
    ),
)


def record(known: Known) -> dict[str, Any]:
    """Return the names and shapes of a model's parameters, by `*` for a block's number where all blocks are alike."""
    import torch

    operations = importlib.import_module("comfy.ops").disable_weight_init
    cls = getattr(importlib.import_module(f"comfy.ldm.{known.module}"), known.name)
    device = (
        "cpu" if known.name == "PixArtMS" else "meta"
    )  # it counts with numbers that the meta device has not
    with torch.device(device):
        model = cls(dtype=torch.float32, device=device, operations=operations, **known.arguments)
    shapes = {
        name: list(tensor.shape)
        for name, tensor in model.state_dict().items()
        if tensor.ndim and not name.endswith(".bias") and not re.match(known.none or "$", name)
    }
    return {"comfyui": f"{known.module}.{known.name}", "names": _by_block(shapes)}


def _by_block(shapes: Mapping[str, list[int]]) -> dict[str, Any]:
    blocks: dict[str, dict[str, list[int]]] = {}
    for name, shape in shapes.items():
        blocks.setdefault(_BLOCK.sub("*", name, count=1), {})[name] = shape
    found: dict[str, Any] = {}
    for pattern, here in blocks.items():
        numbers = [match[0] for name in here if (match := _BLOCK.search(name))]
        alike = len(numbers) > 1 and len({str(shape) for shape in here.values()}) == 1
        if alike and numbers == [str(number) for number in range(len(numbers))]:
            found[pattern] = [len(numbers), *next(iter(here.values()))]
        else:
            found |= here
    return found


def main() -> None:
    """Write the record."""
    sys.path.insert(0, sys.argv.pop())
    sys.argv.append("--cpu")
    importlib.import_module("comfy.options").enable_args_parsing()
    lines = [json.dumps({"model": known.model, **record(known)}) for known in KNOWN]
    RECORD.write_text("[\n" + ",\n".join(lines) + "\n]\n", "utf-8")


if __name__ == "__main__":
    main()
