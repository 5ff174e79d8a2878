"""Small adapter files in several dialects, and what is in them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lorry.dialects import read_adapter
from lorry.files import read_adapter_file, write_safetensors
from lorry.workflows.matching import match

ATTENTION = "transformer_blocks.0.attn1"
WIDE, TALL = (24, 40), (40, 24)


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lora(
    name: str, shape: tuple[int, ...], rank: int, seed: int, alpha: float | None = None
) -> dict[str, Tensor]:
    """A LoRA's tensors under kohya's suffixes."""
    ones = (1,) * len(shape[2:])
    tensors = {
        f"{name}.lora_down.weight": rand(rank, *shape[1:], seed=seed),
        f"{name}.lora_up.weight": rand(shape[0], rank, *ones, seed=seed + 1000),
    }
    return tensors if alpha is None else {**tensors, f"{name}.alpha": torch.tensor(alpha)}


def kohya_file(path: Path, seed: int = 0, rank: int = 4, metadata: dict[str, str] | None = None) -> Path:
    """Two attention layers, a 3x3 convolution and a layer of the text encoder."""
    block = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
    tensors = {
        **lora(f"{block}_attn1_to_q", WIDE, rank, seed + 1, 2.0),
        **lora(f"{block}_attn2_to_k", TALL, rank, seed + 2, 2.0),
        **lora("lora_unet_down_blocks_0_resnets_0_conv1", (12, 8, 3, 3), rank, seed + 3, 1.0),
        **lora("lora_te_text_model_encoder_layers_0_self_attn_q_proj", WIDE, rank, seed + 4, 2.0),
    }
    return write_safetensors(path, tensors, metadata)


def diffusers_file(path: Path, seed: int = 50, rank: int = 3) -> Path:
    """The same layers but the convolution, in diffusers' names and without alpha."""
    block = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    tensors = {}
    for number, (name, (out, into)) in enumerate(
        {
            f"{block}.attn1.to_q": WIDE,
            f"{block}.attn2.to_k": TALL,
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": WIDE,
        }.items()
    ):
        tensors[f"{name}.lora_A.weight"] = rand(rank, into, seed=seed + number)
        tensors[f"{name}.lora_B.weight"] = rand(out, rank, seed=seed + 1000 + number)
    return write_safetensors(path, tensors)


def loha_file(path: Path, seed: int = 90) -> Path:
    """A LoHa of an attention layer and of the convolution, whose kernel its tensors do not tell."""
    tensors = {}
    for name, (out, into) in {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": WIDE,
        "lora_unet_down_blocks_0_resnets_0_conv1": (12, 72),
    }.items():
        for half in (1, 2):
            tensors[f"{name}.hada_w{half}_a"] = rand(out, 2, seed=seed + half)
            tensors[f"{name}.hada_w{half}_b"] = rand(2, into, seed=seed + half + 10)
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    return write_safetensors(path, tensors)


def full_deltas(path: str | Path) -> dict[str, Tensor]:
    """The full deltas of a file in float64, by a name that all dialects share."""
    layers = match([read_adapter(read_adapter_file(path))])
    return {layer.name: layer.present[0].delta.weight(dtype=torch.float64) for layer in layers}


def check_sum(
    got: dict[str, Tensor], *terms: tuple[dict[str, Tensor], float], tolerance: float = 1e-6
) -> None:
    """Raise where deltas are not the weighted sum of others, layer by layer."""
    names = {name for deltas, factor in terms if factor for name in deltas}
    assert set(got) == names
    for name in names:
        expected = torch.stack([factor * deltas[name] for deltas, factor in terms if name in deltas]).sum(0)
        error = (got[name] - expected.reshape(got[name].shape)).norm() / expected.norm()
        assert float(error) <= tolerance, f"{name}: {float(error):.2e}"
