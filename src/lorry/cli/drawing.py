"""A pipeline for the commands: loaded, quiet, with lorry's loader on it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, final

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from lorry.assets import base_folder
from lorry.binding import LoadReport
from lorry.cli.options import LoraChoice, find_adapter
from lorry.errors import FileError, StateError
from lorry.pipelines import attach

SHIPPED: Final = "shipped"
SHIPPED_STEPS: Final = 20
SHIPPED_GUIDANCE: Final = 3.0
SHIPPED_THREADS: Final = 1
"""The shipped model's products are small: threads wait for each other more than they compute. With another program on
one of two cores, two threads took ten times as long as one."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class Loaded:
    """A pipeline, and where it computes."""

    pipeline: Any
    device: torch.device
    dtype: torch.dtype


def load_pipeline(base: str, device: str = "auto", dtype: str = "auto") -> Loaded:
    """Load a base model, and give it lorry's loader.

    Args:
        base: a folder in diffusers' layout, a Hub id, or "shipped".
        device: as torch names it, or "auto".
        dtype: as torch names it, or "auto": float32 on the CPU, float16 elsewhere.

    Raises:
        FileError: the model cannot be had or read.
        StateError: there is no such device.
    """
    place = _device(device)
    precision = _dtype(dtype, place)
    if base == SHIPPED and place.type == "cpu":
        torch.set_num_threads(min(SHIPPED_THREADS, torch.get_num_threads()))
    with quiet():
        pipeline = _from_pretrained(base, precision).to(place)
    pipeline.set_progress_bar_config(disable=True)
    return Loaded(attach(pipeline), place, precision)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise StateError(
            f"The device {name!r} cannot be used: {reason}. Leave `--device` away to have one chosen."
        ) from error
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        name = "float32" if device.type == "cpu" else "float16"
    return getattr(torch, name)


def _from_pretrained(base: str, dtype: torch.dtype) -> Any:
    source = str(base_folder()) if base == SHIPPED else base
    local = Path(source).is_dir()
    try:
        return DiffusionPipeline.from_pretrained(source, torch_dtype=dtype, local_files_only=local)
    except (OSError, ValueError) as error:
        expected = "a folder with a `model_index.json`" if local else "a folder, a Hub id, or `shipped`"
        reason = str(error).strip().splitlines()[0].partition(" Please check out the root cause")[0]
        raise FileError(
            f"The base model {base!r} cannot be loaded: expected {expected}. diffusers says: {reason}"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what diffusers, transformers and torch say to programmers: their bars and notes on deprecation."""
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def load_lora(pipeline: Any, choice: LoraChoice, name: str) -> LoadReport:
    """Load an adapter under `name`; the report calls it as the user did.

    Raises:
        FileError, FormatError, BindingError: it cannot be had, read, understood or applied.
    """
    return replace(
        pipeline.load_lora_weights(find_adapter(choice.source), adapter_name=name), source=choice.source
    )
