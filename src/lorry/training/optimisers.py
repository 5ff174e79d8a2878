"""The optimisers, each by the package that has it, and how the learning rate goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import cos, pi
from typing import Any, Final

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from lorry.errors import SettingsError
from lorry.training.extras import needed
from lorry.training.settings import Optimiser, Settings

_PACKAGES: Final[Mapping[Optimiser, str]] = {"adamw8bit": "bitsandbytes", "schedulefree": "schedulefree"}


def check_optimiser(settings: Settings) -> None:
    """Raise now, and not after all pictures are encoded, when an optimiser cannot be made.

    Raises:
        MissingPackageError: its package is not installed.
        SettingsError: a schedule for the optimiser that has none.
    """
    if settings.optimiser == "schedulefree" and settings.schedule != "constant":
        raise SettingsError("`schedule`: the schedule-free optimiser has none. Set it to constant.")
    if settings.optimiser in _PACKAGES:
        needed(_PACKAGES[settings.optimiser], f"The optimiser {settings.optimiser}")


def make_optimiser(settings: Settings, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return the optimiser that `settings` name, over groups of parameters with rates."""
    common = {"betas": (0.9, settings.beta2), "weight_decay": settings.weight_decay}
    match settings.optimiser:
        case "adamw":
            return torch.optim.AdamW(list(groups), fused=True, **common)  # one pass over all parameters
        case "adamw8bit":
            import bitsandbytes

            return bitsandbytes.optim.AdamW8bit(list(groups), **common)
        case "schedulefree":
            import schedulefree

            return schedulefree.AdamWScheduleFree(list(groups), warmup_steps=settings.warmup, **common)


def rate_factor(settings: Settings, step: int) -> float:
    """Return what the rates are multiplied by at a step, counted from 0: a function of the step alone."""
    if settings.optimiser == "schedulefree":
        return 1.0
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    share = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    match settings.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1 - share
        case "cosine":
            return 0.5 * (1 + cos(pi * share))


@contextmanager
def weights_to_use(
    optimiser: Any, ema: EMAModel | None, parameters: Sequence[nn.Parameter]
) -> Iterator[None]:
    """Put what is to be saved and drawn with in place of what is being trained: averages, where there are any."""
    schedule_free = hasattr(optimiser, "eval")
    if schedule_free:
        optimiser.eval()
    if ema is not None:
        ema.store(parameters)
        ema.copy_to(parameters)
    try:
        yield
    finally:
        if ema is not None:
            ema.restore(parameters)
        if schedule_free:
            optimiser.train()
