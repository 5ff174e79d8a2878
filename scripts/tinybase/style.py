"""How near drawn pictures are to true ones of the same things.

- style: the diagonal Fréchet distance between the shipped autoencoder's features of both sets (each latent channel's
  mean and deviation over places): whether they look alike, whatever stands where;
- picture: the mean squared difference, pixel by pixel (pixels 0 to 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@torch.no_grad()
def drawn(pipeline: Any, prompts: Sequence[str], seed: int) -> list[Image.Image]:
    """One picture of each prompt, all of them from the same noise."""
    pipeline.set_progress_bar_config(disable=True)
    noises = [torch.Generator().manual_seed(seed) for _ in prompts]
    return pipeline(list(prompts), num_inference_steps=20, guidance_scale=3.0, generator=noises).images


@torch.no_grad()
def features(vae: Any, images: Sequence[Image.Image]) -> Tensor:
    """(pictures, 2 * channels)."""
    pixels = torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) / 127.5 - 1 for i in images])
    latents = vae.encode(pixels.float()).latents.flatten(2)
    return torch.cat([latents.mean(2), latents.std(2)], 1)


def style_distance(vae: Any, ours: Sequence[Image.Image], true: Sequence[Image.Image]) -> float:
    one, other = features(vae, ours), features(vae, true)
    return float((one.mean(0) - other.mean(0)).square().sum() + (one.std(0) - other.std(0)).square().sum())


def picture_distance(ours: Sequence[Image.Image], true: Sequence[Image.Image]) -> float:
    pairs = zip(ours, true, strict=True)
    return float(np.mean([((np.array(a) / 255.0 - np.array(b) / 255.0) ** 2).mean() for a, b in pairs]))


def spread(values: Iterable[float]) -> str:
    """Mean, deviation and worst, as the tables write them."""
    found = list(values)
    return f"{mean(found):.4f} (deviation {stdev(found):.4f}, worst {max(found):.4f})"
