"""What the fuzzing of whole loads starts from: a tiny pipeline, and adapter files of all families that fit it."""

from __future__ import annotations

import functools
import json
from typing import final

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from lorry import LoraLoaderMixin

ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONVOLUTION = "mid_block.resnets.0.conv1"
NORM = "mid_block.resnets.0.norm1"
WIDTH = 16
Seed = tuple[str, dict[str, Tensor], dict[str, str]]
"""Name, tensors and metadata of a file."""


@final
class Pipeline(LoraLoaderMixin):
    """As much of a pipeline as loading needs."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet
        self.text_encoder = None
        self.components = {"unet": unet, "text_encoder": None}


def tiny_pipeline() -> Pipeline:
    """Make a UNet of one block on each way and a middle, 16 channels wide."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=4, layers_per_block=1, block_out_channels=(WIDTH,), norm_num_groups=4, attention_head_dim=8,
        cross_attention_dim=8, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
    )  # fmt: skip
    return Pipeline(unet.eval().requires_grad_(False))


@functools.cache
def seeds() -> list[Seed]:
    """Make the files; the same ones each time."""
    made = torch.Generator().manual_seed(1)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=made)

    pair = {"lora_down.weight": rand(2, WIDTH), "lora_up.weight": rand(WIDTH, 2), "alpha": torch.tensor(1.0)}
    kernel = {
        "lora_down.weight": rand(2, WIDTH, 3, 3),
        "lora_up.weight": rand(WIDTH, 2, 1, 1),
        "alpha": torch.tensor(1.0),
    }
    halves = {
        f"hada_w{i}_{side}": rand(*shape)
        for i in (1, 2)
        for side, shape in (("a", (WIDTH, 2)), ("b", (2, WIDTH)))
    }
    gates = {
        f"{name}.weight": rand(*shape)
        for name, shape in (("a1", (WIDTH, 2)), ("a2", (2, WIDTH)), ("b1", (WIDTH, 2)), ("b2", (2, WIDTH)))
    }
    core = rand(2, 2, 3, 3)
    layers: dict[str, tuple[str, dict[str, Tensor]]] = {
        "lora": (ATTENTION, pair),
        "locon": (CONVOLUTION, kernel),
        "tucker": (CONVOLUTION, {**kernel, "lora_down.weight": rand(2, WIDTH, 1, 1), "lora_mid.weight": core}),
        "dora": (ATTENTION, {**pair, "dora_scale": rand(WIDTH, 1)}),
        "loha": (ATTENTION, {**halves, "alpha": torch.tensor(1.0)}),
        "lokr": (ATTENTION, {"lokr_w1": rand(4, 4), "lokr_w2_a": rand(4, 1), "lokr_w2_b": rand(1, 4)}),
        "oft": (ATTENTION, {"oft_blocks": 0.1 * rand(4, 4, 4), "alpha": torch.tensor(0.0)}),
        "boft": (ATTENTION, {"oft_blocks": 0.1 * rand(2, 4, 4, 4), "alpha": torch.tensor(0.0)}),
        "glora": (ATTENTION, {**gates, "alpha": torch.tensor(1.0)}),
        "ia3": (ATTENTION, {"weight": rand(WIDTH), "on_input": torch.tensor(False)}),
        "full": (CONVOLUTION, {"diff": rand(WIDTH, WIDTH, 3, 3), "diff_b": rand(WIDTH)}),
        "norm": (NORM, {"w_norm": rand(WIDTH), "b_norm": rand(WIDTH)}),
    }  # fmt: skip
    files: list[Seed] = []
    for name, (path, parts) in layers.items():
        flat = {f"lora_unet_{path.replace('.', '_')}.{suffix}": tensor for suffix, tensor in parts.items()}
        files.append((name, flat, {"ss_network_dim": "2", "ss_network_alpha": "1"}))
        files.append((f"{name}, dotted", {f"unet.{path}.{suffix}": t for suffix, t in parts.items()}, {}))
    dotted = {
        f"unet.{ATTENTION}.lora_A.weight": rand(2, WIDTH),
        f"unet.{ATTENTION}.lora_B.weight": rand(WIDTH, 2),
    }
    config = {"unet.r": 2, "unet.lora_alpha": 1, "unet.alpha_pattern": {"to_q": 3}, "unet.use_rslora": True}
    files.append(("peft", dotted, {"lora_adapter_metadata": json.dumps(config)}))
    return files
