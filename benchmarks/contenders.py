"""The same operations through lorry and through diffusers + PEFT, on one UNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from diffusers.loaders import StableDiffusionLoraLoaderMixin
from torch import nn

import lorry


class Contender(Protocol):
    """A pipeline with the LoRA loader API."""

    unet: nn.Module

    def load_lora_weights(self, source: Any, adapter_name: str) -> Any: ...
    def set_adapters(self, names: Any, weights: Any = None) -> None: ...
    def fuse_lora(self, components: list[str]) -> None: ...
    def unfuse_lora(self, components: list[str]) -> None: ...
    def delete_adapters(self, names: Any) -> None: ...
    def disable_lora(self) -> None: ...
    def unload_lora_weights(self) -> None: ...


class _Parts:
    """As much of a pipeline as a loader asks for."""

    hf_device_map = None

    def __init__(self, unet: nn.Module, text_encoder: None = None) -> None:
        self.unet = unet
        self.text_encoder = text_encoder
        self.components = {"unet": unet}


class Lorry(lorry.LoraLoaderMixin, _Parts):
    """lorry."""


class Diffusers(StableDiffusionLoraLoaderMixin, _Parts):
    """diffusers with PEFT."""


def load(contender: Contender, path: Path, name: str) -> None:
    """Load an adapter file by its path."""
    contender.load_lora_weights(str(path), adapter_name=name)
