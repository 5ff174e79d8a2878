"""A step of `lorry train`, on random latents and captions in its cache."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from lorry.training import AdapterConfig, Settings, adapters, add_adapter
from lorry.training.bases import StableDiffusion
from lorry.training.caches import TensorCache
from lorry.training.data import DataSet, Picture
from lorry.training.engine import Engine
from lorry.training.material import Material
from lorry.training.objectives import get_objective
from lorry.training.order import Order
from lorry.training.preparing import Item, caption_key

PICTURES = 10


def engine_step(_: str, unet: UNet2DConditionModel, case: Any) -> Callable[[], Tensor]:
    """Return a step of the engine."""
    scheduler = DDPMScheduler()
    base = StableDiffusion(SimpleNamespace(unet=unet, scheduler=scheduler))
    add_adapter(unet, AdapterConfig(rank=16, alpha=16, target_modules="attention"), adapters.NAME)
    parameters = adapters.named_parameters({"unet": unet})
    settings = Settings().changed({"batch": case.batch, "rate": 1e-4, "schedule": "constant", "steps": 10**6})
    objective, accelerator = get_objective(scheduler), Accelerator(mixed_precision="no")
    engine = Engine(settings, base, objective, material(unet, case), parameters, accelerator)
    numbers = iter(range(10**6))
    return lambda: torch.tensor(engine.step(next(numbers), stop=False).loss)


def material(unet: UNet2DConditionModel, case: Any) -> Material:
    """Ten pictures and their captions, encoded already, in a cache that is left to the system."""
    config: Any = unet.config
    cache = TensorCache(Path(tempfile.mkdtemp()))
    items = [
        Item(Picture(Path(), f"thing {n}", (1, 1), str(n)), (1, 1), f"latents-{n}") for n in range(PICTURES)
    ]
    for item in items:
        shape = (1, config.in_channels, case.side, case.side)
        cache.write(item.key, {"mean": torch.randn(shape), "places": torch.zeros(1, 6)})
    for caption in ("", *(item.picture.caption for item in items)):
        cache.write(caption_key(caption, ""), {"states": torch.randn(1, 77, config.cross_attention_dim)})
    order = Order({(1, 1): list(range(PICTURES))}, case.batch, seed=0)
    return Material(DataSet(()), items, order, cache, "", case.side)
