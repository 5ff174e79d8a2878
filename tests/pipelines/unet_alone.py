"""The smallest thing with the loader API: a UNet and no pipeline around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lorry import LoraLoaderMixin
from models import tiny_unet


class UnetAlone(LoraLoaderMixin):
    """A tiny UNet that takes adapters."""

    def __init__(self) -> None:
        self.unet: Any = tiny_unet()
        self.components = {"unet": self.unet}


def attention_loras(pipeline: UnetAlone) -> dict[str, Tensor]:
    """A file's tensors: a LoRA of rank 2 for every attention's q, k and v."""
    tensors: dict[str, Tensor] = {}
    for path, module in pipeline.unet.named_modules():
        if path.endswith(("to_q", "to_k", "to_v")):
            tensors[f"unet.{path}.lora_A.weight"] = torch.randn(2, module.in_features)
            tensors[f"unet.{path}.lora_B.weight"] = torch.randn(module.out_features, 2)
    return tensors
