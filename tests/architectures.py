"""The models that people use, at full size: the configurations of the published checkpoints."""

from __future__ import annotations

from typing import Any

from lorry.pipelines.architectures import SD2, SD15, SDXL, Config

FLUX_DEV: dict[str, Any] = {"guidance_embeds": True}
WAN_T2V: dict[str, Any] = {}
WAN_I2V: dict[str, Any] = {"image_dim": 1280, "added_kv_proj_dim": 5120, "in_channels": 36}

MODELS: dict[str, tuple[str, Config]] = {
    "sd15": ("UNet2DConditionModel", SD15),
    "sd2": ("UNet2DConditionModel", SD2),
    "sdxl": ("UNet2DConditionModel", SDXL),
    "flux": ("FluxTransformer2DModel", FLUX_DEV),
    "wan": ("WanTransformer3DModel", WAN_T2V),
    "wan i2v": ("WanTransformer3DModel", WAN_I2V),
}
"""The denoisers: class in diffusers, and what differs from its defaults. Build them on the meta device."""
