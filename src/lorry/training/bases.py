"""What training asks of a base model, for each architecture: its text, its sizes, and its denoiser's arguments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, final

import torch
from diffusers import (
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from lorry.binding import Base as KnownBase
from lorry.binding import base_of_models
from lorry.errors import UnsupportedAdapterError
from lorry.names import TEXT_ENCODERS

Text = Mapping[str, Tensor]
"""What a denoiser is told of captions: tensors whose first axis counts them."""


class Base(ABC):
    """A pipeline to train adapters on."""

    original: ClassVar[str]
    """What `modelspec.architecture` calls the first model of this layout."""
    original_kohya: ClassVar[str]
    """What `ss_base_model_version` calls that."""
    denoiser_name: ClassVar[str]

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    @property
    def denoiser(self) -> nn.Module:
        return getattr(self.pipeline, self.denoiser_name)

    @cached_property
    def known(self) -> KnownBase | None:
        """The published base that this is, as far as its layers tell."""
        return base_of_models({self.denoiser_name: self.denoiser})

    @property
    def architecture(self) -> str:
        """What `modelspec.architecture` calls it; the first of its layout where its sizes are of no known base."""
        return (self.known and self.known.modelspec) or self.original

    @property
    def kohya_version(self) -> str:
        """What `ss_base_model_version` calls it, likewise."""
        return (self.known and self.known.kohya) or self.original_kohya

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """Every text encoder that is there, by component."""
        found = {name: getattr(self.pipeline, name, None) for name in TEXT_ENCODERS}
        return {name: model for name, model in found.items() if model is not None}

    @property
    def trainable_text_encoders(self) -> dict[str, nn.Module]:
        """Those of CLIP."""
        return {name: m for name, m in self.text_encoders.items() if "CLIP" in type(m).__name__}

    @property
    def latent_factor(self) -> int:
        """How many pixels a latent is wide."""
        return int(self.pipeline.vae_scale_factor)

    @property
    @abstractmethod
    def denoiser_factor(self) -> int:
        """What the sides of latents are divided by in the denoiser."""

    @property
    def size_step(self) -> int:
        """What the sides of pictures must be multiples of."""
        return self.latent_factor * self.denoiser_factor

    @property
    def least_step(self) -> int:
        """What they can be multiples of at the least."""
        return self.size_step

    @property
    def resolution(self) -> int:
        """The side of the square pictures that it was made for."""
        config: Any = self.denoiser.config
        size = getattr(config, "sample_size", None) or getattr(self.pipeline, "default_sample_size", 64)
        return int(size if isinstance(size, int) else size[0]) * self.latent_factor

    @property
    def largest_side(self) -> int | None:
        """The most pixels that a side of a picture may have: SD3 has places for so many. None where all is well."""
        places = getattr(self.denoiser.config, "pos_embed_max_size", None)
        return None if places is None else int(places) * self.size_step

    @abstractmethod
    def encode_text(self, captions: Sequence[str]) -> Text:
        """Run the text encoders over captions, as the pipeline does when it draws."""

    @abstractmethod
    def predict(self, noisy: Tensor, timesteps: Tensor, text: Text, places: Tensor) -> Tensor:
        """Run the denoiser.

        Args:
            noisy: (n, channels, h, w).
            timesteps: (n), as the scheduler counts them.
            text: of `encode_text`.
            places: (n, 6): the original height and width, the top and left corner, the height and width.

        Returns:
            What it predicts, in the shape of `noisy`.
        """

    @property
    def _device(self) -> torch.device:
        return next(iter(self.text_encoders.values())).device  # type: ignore[return-value]


class _UNetBase(Base):
    denoiser_name = "unet"

    @property
    def denoiser_factor(self) -> int:
        return 2 ** (len(self.pipeline.unet.config.block_out_channels) - 1)

    @property
    def least_step(self) -> int:
        """A UNet trims what it enlarges to the size that it had before."""
        return self.latent_factor


@final
class StableDiffusion(_UNetBase):
    """Stable Diffusion 1.x and 2.x."""

    original, original_kohya = "stable-diffusion-v1", "sd_v1"

    @property
    def is_second(self) -> bool:
        """Whether this is Stable Diffusion 2."""
        return self.known is not None and self.known.name == "sd2"

    @property
    def architecture(self) -> str:
        if not self.is_second:
            return super().architecture
        return "stable-diffusion-v2-768-v" if self._predicts_velocity else "stable-diffusion-v2-512"

    @property
    def kohya_version(self) -> str:
        return super().kohya_version + ("_v" if self._predicts_velocity else "")

    @property
    def _predicts_velocity(self) -> bool:
        return self.pipeline.scheduler.config.prediction_type == "v_prediction"

    def encode_text(self, captions: Sequence[str]) -> Text:
        return {"states": self.pipeline.encode_prompt(list(captions), self._device, 1, False)[0]}

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Text, places: Tensor) -> Tensor:
        return self.pipeline.unet(noisy, timesteps, text["states"], return_dict=False)[0]


@final
class StableDiffusionXl(_UNetBase):
    """SDXL: two text encoders, and the sizes as a condition."""

    original, original_kohya = "stable-diffusion-xl-v1-base", "sdxl_base_v1-0"

    def encode_text(self, captions: Sequence[str]) -> Text:
        states, _, pooled, _ = self.pipeline.encode_prompt(
            list(captions), device=self._device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"states": states, "pooled": pooled}

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Text, places: Tensor) -> Tensor:
        added = {"text_embeds": text["pooled"], "time_ids": places.to(text["pooled"].dtype)}
        return self.pipeline.unet(
            noisy, timesteps, text["states"], added_cond_kwargs=added, return_dict=False
        )[0]


@final
class StableDiffusion3(Base):
    """SD3 and SD3.5."""

    original, original_kohya = "stable-diffusion-3", "sd3m"
    denoiser_name = "transformer"

    @property
    def denoiser_factor(self) -> int:
        return int(self.pipeline.transformer.config.patch_size)

    def encode_text(self, captions: Sequence[str]) -> Text:
        states, _, pooled, _ = self.pipeline.encode_prompt(
            list(captions), None, None, device=self._device, do_classifier_free_guidance=False
        )
        return {"states": states, "pooled": pooled}

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Text, places: Tensor) -> Tensor:
        return self.pipeline.transformer(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=text["states"],
            pooled_projections=text["pooled"],
            return_dict=False,
        )[0]


@final
class Flux(Base):
    """Flux.1: latents in packs of two by two; a guidance of 1 for the distilled `dev` model."""

    original, original_kohya = "flux-1-dev", "flux1"
    denoiser_name = "transformer"

    @property
    def architecture(self) -> str:
        return "flux-1-dev" if self.denoiser.config.guidance_embeds else "flux-1-schnell"  # type: ignore[union-attr]

    @property
    def denoiser_factor(self) -> int:
        return 2

    def encode_text(self, captions: Sequence[str]) -> Text:
        states, pooled, _ = self.pipeline.encode_prompt(list(captions), None, device=self._device)
        return {"states": states, "pooled": pooled}

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Text, places: Tensor) -> Tensor:
        count, channels, height, width = noisy.shape
        packed = FluxPipeline._pack_latents(noisy, count, channels, height, width)
        transformer, states = self.pipeline.transformer, text["states"]
        predicted = transformer(
            hidden_states=packed,
            timestep=timesteps / 1000,
            guidance=noisy.new_ones(count) if transformer.config.guidance_embeds else None,
            pooled_projections=text["pooled"],
            encoder_hidden_states=states,
            txt_ids=states.new_zeros(states.shape[1], 3),
            img_ids=FluxPipeline._prepare_latent_image_ids(
                count, height // 2, width // 2, noisy.device, noisy.dtype
            ),
            return_dict=False,
        )[0]
        factor = self.latent_factor
        return FluxPipeline._unpack_latents(predicted, height * factor, width * factor, factor)


def get_base(pipeline: Any) -> Base:
    """Return what training asks of a pipeline.

    Raises:
        UnsupportedAdapterError: its architecture is none that lorry trains.
    """
    denoiser = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    if isinstance(denoiser, UNet2DConditionModel):
        match denoiser.config.addition_embed_type:  # type: ignore[attr-defined]
            case None:
                return StableDiffusion(pipeline)
            case "text_time":
                return StableDiffusionXl(pipeline)
    if isinstance(denoiser, SD3Transformer2DModel):
        return StableDiffusion3(pipeline)
    if isinstance(denoiser, FluxTransformer2DModel) and isinstance(pipeline, FluxPipeline):
        return Flux(pipeline)
    raise UnsupportedAdapterError(
        f"{type(pipeline).__name__} with a {type(denoiser).__name__} is no base that `lorry train` knows: Stable "
        "Diffusion 1.x and 2.x, SDXL, SD3 and Flux.1. `lorry.add_adapter` puts a fresh adapter on any model, for a "
        "training loop of your own."
    )
