"""Full-size architectures with random weights, and adapter files for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from lorry.pipelines.architectures import SD15, SDXL

ARCHITECTURES = {"SD 1.5": SD15, "SDXL": SDXL}
FLUX: dict[str, Any] = {
    "in_channels": 64,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}
"""Flux-dev but for the number of its blocks."""
NOISE = (1 << 20) - 3
"""Random numbers, of which a model's weights are repetitions: billions of new ones would take minutes."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def build_unet(name: str, dtype: torch.dtype, device: str = "cpu") -> nn.Module:
    """Build the UNet of an architecture with small random weights, without ever holding it in float32."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**ARCHITECTURES[name])
    return filled(unet, dtype, device)


def build_flux(double: int, single: int, dtype: torch.dtype, device: str = "cpu") -> nn.Module:
    """Build some double and single blocks of Flux-dev, with all that stands around them."""
    with torch.device("meta"):
        flux = FluxTransformer2DModel(**FLUX, num_layers=double, num_single_layers=single)
    return filled(flux, dtype, device)


def filled(model: nn.Module, dtype: torch.dtype, device: str) -> nn.Module:
    """Give a model on the meta device small random weights."""
    model = model.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    noise = torch.empty(NOISE, dtype=dtype, device=device).normal_(std=0.02, generator=generator)
    for parameter in model.parameters():
        for piece in parameter.data.view(-1).split(NOISE):
            piece.copy_(noise[: len(piece)])
    return model


def attention_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the attention projections of a model by path: what trainers' defaults reach."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path.endswith(ATTENTION)
    }


def write_adapter(model: nn.Module, path: Path, rank: int, dtype: torch.dtype, seed: int) -> Path:
    """Write a LoRA on every attention projection of `model`, in the names that diffusers reads."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, module in attention_layers(model).items():
        down = torch.randn(rank, module.in_features, generator=generator) * 0.02
        up = torch.randn(module.out_features, rank, generator=generator) * 0.02
        tensors[f"unet.{name}.lora_A.weight"] = down.to(dtype)
        tensors[f"unet.{name}.lora_B.weight"] = up.to(dtype)
    save_file(tensors, path)
    return path


def unet_inputs(name: str, dtype: torch.dtype, size: int) -> dict[str, Any]:
    """Make the arguments of one forward of the UNet at a latent of `size` x `size`."""
    config = ARCHITECTURES[name]
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    inputs: dict[str, Any] = {
        "sample": noise(1, 4, size, size),
        "timestep": torch.tensor(10),
        "encoder_hidden_states": noise(1, 77, config["cross_attention_dim"]),
    }
    if name == "SDXL":
        inputs["added_cond_kwargs"] = {
            "text_embeds": noise(1, 1280),
            "time_ids": torch.zeros(1, 6, dtype=dtype),
        }
    return inputs
