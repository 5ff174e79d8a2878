"""The base model of a run, loaded as it is trained on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from lorry.assets import base_folder
from lorry.errors import FileError
from lorry.training.bases import Base, get_base
from lorry.training.settings import SHIPPED, Settings


def load_base(settings: Settings, device: torch.device) -> Base:
    """Load the base model of a run on the CPU, frozen, in the dtype to compute in on `device`.

    Raises:
        FileError: it cannot be had or read.
        UnsupportedAdapterError: it is of an architecture that lorry does not train.
    """
    source = str(base_folder()) if settings.base == SHIPPED else settings.base
    with quiet():
        base = get_base(_from_pretrained(source, settings, compute_dtype(settings, device)))
    for model in (base.denoiser, *base.text_encoders.values(), base.pipeline.vae):
        model.requires_grad_(False).eval()
    if settings.checkpointing:
        base.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        base.denoiser.train()  # which is when diffusers' models look at that
    return base


def compute_dtype(settings: Settings, device: torch.device) -> torch.dtype:
    """Return the dtype of a run's base and activations."""
    match settings.precision:
        case "float32":
            return torch.float32
        case "bf16":
            return torch.bfloat16
        case "fp16":
            return torch.float16
        case "auto":
            if device.type == "cpu":
                return torch.float32
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _from_pretrained(source: str, settings: Settings, dtype: torch.dtype) -> Any:
    local = Path(source).is_dir()
    try:
        return DiffusionPipeline.from_pretrained(source, torch_dtype=dtype, local_files_only=local)
    except (OSError, ValueError) as error:
        expected = "a folder with a `model_index.json`" if local else "a folder, a Hub id, or `shipped`"
        reason = str(error).strip().splitlines()[0]
        raise FileError(
            f"The base model {settings.base!r} cannot be loaded: expected {expected}. diffusers says: {reason}"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what diffusers, transformers and bitsandbytes say to programmers: bars, notes on deprecation, casts."""
    for package in (diffusers, transformers):
        package.utils.logging.set_verbosity_error()
        package.utils.logging.disable_progress_bar()
    casts = logging.getLogger("bitsandbytes")  # which in 8 bits warns of a cast at each call of each layer
    before = casts.level
    casts.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        casts.setLevel(before)
