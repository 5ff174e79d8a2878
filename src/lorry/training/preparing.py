"""Before the first step: every picture through the autoencoder and every caption through the text encoders, once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lorry.errors import DataError
from lorry.training.bases import Base
from lorry.training.buckets import Size, fit
from lorry.training.caches import TensorCache, key_of
from lorry.training.data import Picture, open_picture

Advance = Callable[[str, int, int], object]
"""Called with what is being done, how much of it is done, and how much there is."""


@final
@dataclass(frozen=True, slots=True)
class Item:
    """A picture at the size that it is trained at."""

    picture: Picture
    size: Size
    key: str
    """Of its latents."""


@torch.no_grad()
def cache_latents(
    base: Base,
    items: Sequence[Item],
    cache: TensorCache,
    *,
    flip: bool,
    device: torch.device,
    advance: Advance,
) -> None:
    """Encode the pictures that are not in the cache; note there which cannot be read.

    An entry has `mean` (1 or 2, channels, h, w), the second of it of the mirrored picture; `deviation` of the same
    shape where the autoencoder gives a distribution; and `places` (1 or 2, 6) as SDXL is told them.
    """
    missing = [item for item in items if not cache.has(item.key) and cache.find_refusal(item.key) is None]
    vae = base.pipeline.vae
    if not missing:
        return
    before = (vae.device, vae.dtype)
    vae.to(device, torch.float32)  # SDXL's own autoencoder overflows in float16
    try:
        for done, item in enumerate(missing):
            try:
                cache.write(item.key, _encoded(vae, item, flip=flip))
            except DataError as error:
                cache.refuse(item.key, str(error))
            advance("pictures encoded", done + 1, len(missing))
    finally:
        vae.to(*before)


def latent_key(picture: Picture, size: Size, vae_hash: str, *, flip: bool) -> str:
    """Return the name of a picture's entry in the cache."""
    return key_of("latents 1", picture.digest, size, vae_hash, flip)


def _encoded(vae: Any, item: Item, *, flip: bool) -> dict[str, Tensor]:
    fitted = fit(open_picture(item.picture.path), item.size)
    images = [fitted.image, ImageOps.mirror(fitted.image)] if flip else [fitted.image]
    encoded = vae.encode(torch.stack([_pixels(image) for image in images]).to(vae.device))
    config = vae.config
    shift, factor = getattr(config, "shift_factor", None) or 0.0, config.scaling_factor
    width, height = item.size
    place = [*fitted.original[::-1], *fitted.corner[::-1], height, width]
    entry = {"places": torch.tensor([place] * len(images), dtype=torch.float32, device="cpu")}
    if not hasattr(encoded, "latent_dist"):
        return entry | {"mean": ((encoded.latents - shift) * factor).float()}
    spread = encoded.latent_dist
    return entry | {"mean": (spread.mean - shift) * factor, "deviation": spread.std * factor}


def _pixels(image: Image.Image) -> Tensor:
    """(3, h, w), from -1 to 1."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


@torch.no_grad()
def cache_captions(
    base: Base,
    captions: Sequence[str],
    cache: TensorCache,
    hashes: str,
    *,
    device: torch.device,
    advance: Advance,
) -> None:
    """Encode the captions that are not in the cache: one entry each, whose tensors have a first axis of 1."""
    missing = [caption for caption in captions if not cache.has(caption_key(caption, hashes))]
    if not missing:
        return
    before = {model: model.device for model in base.text_encoders.values()}
    for model in before:
        model.to(device)
    try:
        for done, caption in enumerate(missing):
            text = base.encode_text([caption])
            cache.write(caption_key(caption, hashes), {name: t.cpu() for name, t in text.items()})
            advance("captions encoded", done + 1, len(missing))
    finally:
        for model, place in before.items():
            model.to(place)  # type: ignore[arg-type]


def caption_key(caption: str, hashes: str) -> str:
    """Return the name of a caption's entry in the cache."""
    return key_of("text 1", caption, hashes)
