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
