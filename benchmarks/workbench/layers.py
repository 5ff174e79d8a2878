"""Layers of SDXL's shapes, with the spectra of trained adapters, and files of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lorry.algebra import LowRank
from lorry.files import stream_safetensors, write_safetensors

Shape = tuple[int, ...]
INSIDE: Mapping[str, Shape] = {
    **{f"attn1.to_{part}": (1280, 1280) for part in ("q", "k", "v", "out.0")},
    **{f"attn2.to_{part}": (1280, 1280) for part in ("q", "out.0")},
    **{f"attn2.to_{part}": (1280, 2048) for part in ("k", "v")},
    "ff.net.0.proj": (10240, 1280),
    "ff.net.2": (1280, 5120),
}
"""One transformer block at the deepest level of SDXL: every shape that its layers have there."""
TRANSFORMER = "input_blocks.7.1"
CONVOLUTION = {"input_blocks.7.0.in_layers.2": (1280, 640, 3, 3)}
WHOLE_FILE: Mapping[Shape, int] = {
    (640, 640): 60 + 10,
    (640, 2048): 20,
    (5120, 640): 10,
    (640, 2560): 10,
    (1280, 1280): 360 + 12,
    (1280, 2048): 120,
    (10240, 1280): 60,
    (1280, 5120): 60,
}
"""{shape: how many layers}, of the 722 that kohya's trainer changes in SDXL's UNet unless asked for convolutions."""
RANK, NEW_RANK, DECAY = 64, 16, 0.93
"""Each singular value is the one before it times `DECAY`, about as trained adapters have it."""


def layers(blocks: int = 1) -> dict[str, Shape]:
    """Return the layers of some transformer blocks and one convolution, by their names in SDXL's checkpoints."""
    inside = {
        f"{TRANSFORMER}.transformer_blocks.{block}.{name}": shape
        for block in range(blocks)
        for name, shape in INSIDE.items()
    }
    return inside | CONVOLUTION


def pair(shape: Shape, seed: int, size: float = 1.0) -> LowRank:
    """Return a delta in factors, about as a trained adapter has it."""
    random = torch.Generator().manual_seed(seed)
    up = torch.randn(shape[0], RANK, generator=random) * DECAY ** torch.arange(float(RANK))
    return LowRank(size * torch.randn(RANK, *shape[1:], generator=random), up, 0.5)


def write_lora(path: Path, seed: int) -> Path:
    """Write an adapter of these layers in kohya's names and float16, with an alpha unlike the rank."""
    tensors: dict[str, Tensor] = {}
    for number, (name, shape) in enumerate(layers().items()):
        delta, key = pair(shape, 100 * seed + number, 0.05), f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{key}.lora_up.weight"] = delta.up.reshape(*delta.up.shape, *(1 for _ in shape[2:])).half()
        tensors[f"{key}.lora_down.weight"] = delta.down.half()
        tensors[f"{key}.alpha"] = torch.tensor(RANK / 2)
    return write_safetensors(path, tensors)


def write_checkpoint(path: Path, blocks: int, tuned: bool) -> Path:
    """Write these layers as a single file of SDXL in float16, one at a time; with `tuned`, changed at rank 64."""
    shapes = {f"model.diffusion_model.{name}.weight": shape for name, shape in layers(blocks).items()}
    outline = {key: torch.empty(shape, dtype=torch.float16, device="meta") for key, shape in shapes.items()}
    seeds = {key: seed for seed, key in enumerate(shapes)}

    def produce(key: str) -> Tensor:
        shape, seed = shapes[key], seeds[key]
        weight = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        if tuned:
            delta = pair(shape, 1000 + seed, 0.001)
            weight += (delta.up @ delta.down.flatten(1)).reshape(shape)
        return weight.half()

    stream_safetensors(path, outline, produce, {})
    return path


def sdxl_shapes() -> Iterator[Shape]:
    """Yield every shape that is measured by itself."""
    yield from sorted({*WHOLE_FILE, *CONVOLUTION.values()})
