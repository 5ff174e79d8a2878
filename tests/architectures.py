"""The UNets that people use, at full size: the configurations of the published checkpoints."""

from __future__ import annotations

from typing import Any

SD15: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
SD2: dict[str, Any] = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "sample_size": 96,
    "use_linear_projection": True,
}
SDXL: dict[str, Any] = {
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

FLUX_DEV: dict[str, Any] = {"guidance_embeds": True}
WAN_T2V: dict[str, Any] = {}
WAN_I2V: dict[str, Any] = {"image_dim": 1280, "added_kv_proj_dim": 5120, "in_channels": 36}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd15": ("UNet2DConditionModel", SD15),
    "sd2": ("UNet2DConditionModel", SD2),
    "sdxl": ("UNet2DConditionModel", SDXL),
    "flux": ("FluxTransformer2DModel", FLUX_DEV),
    "wan": ("WanTransformer3DModel", WAN_T2V),
    "wan i2v": ("WanTransformer3DModel", WAN_I2V),
}
"""The denoisers: class in diffusers, and what differs from its defaults. Build them on the meta device."""
