"""Run commands, and write adapters for them."""

from __future__ import annotations

from pathlib import Path

import torch
from typer.testing import CliRunner, Result

from lorry.binding import weight_shape
from lorry.cli.app import app
from lorry.files import write_safetensors
from models import carriers, random_delta, tiny_sd_pipeline


def lorry_says(*words: str | Path) -> Result:
    """Run a command, and return what it printed and its exit code."""
    return CliRunner().invoke(app, [str(word) for word in words])


def bad_lora(path: Path) -> Path:
    """Write a LoRA of the right names and a wrong shape."""
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    return write_safetensors(
        path, {f"{layer}.lora_A.weight": torch.ones(2, 99), f"{layer}.lora_B.weight": torch.ones(99, 2)}
    )


def write_lora(path: Path, seed: int, metadata: dict[str, str] | None = None, rank: int = 2) -> Path:
    """Write a LoRA for the attention of the random pipeline, in diffusers' dialect."""
    pipeline = tiny_sd_pipeline()
    tensors: dict[str, torch.Tensor] = {}
    for component, ends in (("unet", ("to_q", "to_v", "conv1")), ("text_encoder", ("q_proj",))):
        for number, (layer, module) in enumerate(carriers(getattr(pipeline, component), ends).items()):
            delta = random_delta(weight_shape(module) or (), seed * 100 + number, rank, size=1.0)
            tensors[f"{component}.{layer}.lora_A.weight"] = delta.down
            tensors[f"{component}.{layer}.lora_B.weight"] = delta.up
    return write_safetensors(path, tensors, metadata)
