"""What the denoiser learns to predict: noise, velocity or flow, as the base's own scheduler has it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import exp
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from lorry.errors import SettingsError, UnsupportedAdapterError


class Task(NamedTuple):
    """What the denoiser is given, and what it is to answer."""

    noisy: Tensor
    """(n, channels, h, w)."""
    timesteps: Tensor
    """(n), as the scheduler counts them."""
    target: Tensor
    """(n, channels, h, w)."""
    weights: Tensor
    """(n), of each sample's mean squared error."""


class Objective(ABC):
    """A way to noise latents, and what is to be predicted of it."""

    prediction: str
    """What `modelspec.prediction_type` calls it."""

    @abstractmethod
    def task(self, latents: Tensor, noise: Tensor, moments: Tensor) -> Task:
        """Noise latents.

        Args:
            latents: (n, channels, h, w).
            noise: normal, of the same shape.
            moments: (n), uniform in [0, 1): how far into the noise each one is.
        """


@final
class Diffusion(Objective):
    """`noisy = sqrt(a) x + sqrt(1 - a) n`, with the noise n or the velocity `sqrt(a) n - sqrt(1 - a) x` to predict.

    Weights with `min_snr` are min(snr, gamma) / snr for noise and min(snr, gamma) / (snr + 1) for velocity.

    Source: Ho et al., DDPM (arXiv:2006.11239), section 3; Salimans and Ho (arXiv:2202.00512), section 4; Hang et al.,
    min-SNR (arXiv:2303.09556), section 3.4.
    """

    def __init__(self, scheduler: Any, min_snr: float = 0.0) -> None:
        self.prediction = {"epsilon": "epsilon", "v_prediction": "v"}[scheduler.config.prediction_type]
        self._kept = scheduler.alphas_cumprod.double()
        self._min_snr = min_snr

    def task(self, latents: Tensor, noise: Tensor, moments: Tensor) -> Task:
        steps = (moments * len(self._kept)).long().clamp(max=len(self._kept) - 1)
        kept = self._kept.to(latents.device)[steps]
        signal, noisiness = (
            x.to(latents.dtype)[:, None, None, None] for x in (kept.sqrt(), (1 - kept).sqrt())
        )
        noisy = signal * latents + noisiness * noise
        target = noise if self.prediction == "epsilon" else signal * noise - noisiness * latents
        return Task(noisy, steps, target, self._weights(kept).to(latents.dtype))

    def _weights(self, kept: Tensor) -> Tensor:
        if not self._min_snr:
            return torch.ones_like(kept)
        snr = kept / (1 - kept)
        capped = snr.clamp(max=self._min_snr)
        if self.prediction == "v":
            return capped / (snr + 1)
        return torch.where(snr > 0, capped / snr.clamp(min=1e-12), 1.0)


@final
class Flow(Objective):
    """`noisy = (1 - s) x + s n`, with the flow `n - x` to predict.

    The times s are logit-normal, then shifted as the scheduler shifts them when it draws: `k s / (1 + (k - 1) s)`.

    Source: Esser et al., Stable Diffusion 3 (arXiv:2403.03206), sections 3.1 and 5.3.2.
    """

    prediction = "flow"

    def __init__(self, scheduler: Any) -> None:
        self._config = scheduler.config

    def task(self, latents: Tensor, noise: Tensor, moments: Tensor) -> Task:
        times = torch.special.ndtri(moments.double().clamp(1e-6, 1 - 1e-6)).sigmoid()
        shift = self._shift(latents)
        times = shift * times / (1 + (shift - 1) * times)
        sigmas = times.to(latents.dtype)[:, None, None, None]
        steps = (times * self._config.num_train_timesteps).to(latents.dtype)
        noisy = (1 - sigmas) * latents + sigmas * noise
        return Task(noisy, steps, noise - latents, latents.new_ones(len(latents)))

    def _shift(self, latents: Tensor) -> float:
        config = self._config
        if not config.use_dynamic_shifting:
            return float(config.shift)
        tokens = latents.shape[2] * latents.shape[3] / 4
        share = (tokens - config.base_image_seq_len) / (config.max_image_seq_len - config.base_image_seq_len)
        return exp(config.base_shift + share * (config.max_shift - config.base_shift))


def get_objective(scheduler: Any, min_snr: float = 0.0, noise_offset: float = 0.0) -> Objective:
    """Return the objective that a base was trained by.

    Raises:
        SettingsError: min-SNR or a noise offset with flow matching, for which they have no meaning.
        UnsupportedAdapterError: the scheduler predicts what lorry does not train.
    """
    if hasattr(scheduler, "alphas_cumprod"):
        kind = scheduler.config.prediction_type
        if kind not in ("epsilon", "v_prediction"):
            raise UnsupportedAdapterError(
                f"A base that predicts {kind!r} cannot be trained: epsilon and v can."
            )
        return Diffusion(scheduler, min_snr)
    if "FlowMatch" not in type(scheduler).__name__:
        raise UnsupportedAdapterError(f"{type(scheduler).__name__} says nothing of how its base was trained.")
    for name, value in (("min_snr", min_snr), ("noise_offset", noise_offset)):
        if value:
            raise SettingsError(
                f"`{name}` has no meaning for a base that was trained by flow matching: leave it at 0."
            )
    return Flow(scheduler)
