"""Workflows that need a base model by name: what `lorry.convert` and the command line both call."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import nn

from lorry.binding import Base
from lorry.errors import StateError
from lorry.pipelines.architectures import ARCHITECTURES, skeleton
from lorry.workflows.approximating import RANK, Approximator
from lorry.workflows.convert import Conversion, convert_file


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    to: str,
    base: str | os.PathLike[str] | None = None,
    *,
    approximate: bool = False,
    rank: int | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write an adapter in another dialect: the same tensors under other names.

    Args:
        source: a file, a folder, or the id of a repository of the Hub.
        destination: a safetensors file; for `to="peft"` a folder, which gets one of PEFT's folders for each component.
        to: a dialect that is written: `"kohya"`, `"diffusers"`, `"peft"`, `"comfyui"`, … (docs/formats.md has them).
        base: the base model that settles names and shapes: the name of a known one (`"sdxl"`), or a folder of a
            diffusers pipeline, of which only the configurations are read. None: told from the file, where it tells.
        approximate: write what the dialect has no names for in another form, rounded or as a LoRA by SVD, and say how
            far that is off. When false, such a file is refused. Families that depend on the base weights need a folder
            with weights as `base`.
        rank: of those LoRAs; 32 when None.
        overwrite: replace what is at `destination`, if that is an adapter, or empty.

    Returns:
        What was done; `print` it.

    Raises:
        StateError: `rank` without `approximate`.
        LorryError: the file cannot be read, understood, or carried by that dialect; nothing is written then.
    """
    if rank is not None and not approximate:
        raise StateError(
            f"A rank of {rank} is that of LoRAs that approximate: ask for them (`--approximate`), or leave it away."
        )

    def find_models(told: Base | None) -> Mapping[str, nn.Module] | None:
        name = base if base is not None else told.name if told and told.name in ARCHITECTURES else None
        if name is None:
            return None
        models = skeleton(name, weights=approximate and str(name) not in ARCHITECTURES)
        if approximator is not None:
            approximator.models = models
        return models

    approximator = Approximator(RANK if rank is None else rank) if approximate else None
    return convert_file(source, destination, to, find_models, approximator=approximator, overwrite=overwrite)
