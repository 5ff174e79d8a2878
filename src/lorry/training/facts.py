"""What must be the same in a run that goes on from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import nn

from lorry.training import adapters
from lorry.training.data import DataSet
from lorry.training.material import Material
from lorry.training.processes import Process

_SAME: Final = (
    "optimiser",
    "rate",
    "text_rate",
    "weight_decay",
    "beta2",
    "warmup",
    "schedule",
    "clip",
    "ema",
    "seed",
    "flip",
    "caption_dropout",
    "min_snr",
    "noise_offset",
    "targets",
    "init",
    "init_iterations",
    "precision",
    "quantize",
)
"""The settings that what a step does depends on. `steps` may grow: a run goes on for longer."""


def facts_of(
    process: Process, base_hash: str, components: Mapping[str, nn.Module], material: Material
) -> dict[str, Any]:
    """Return the facts of a run by what an error calls them."""
    return {
        "base": base_hash,
        **adapters.described(components),
        "data": DataSet(tuple(item.picture for item in material.items)).fingerprint(),
        "sizes of pictures": sorted({f"{w}x{h}" for w, h in (item.size for item in material.items)}),
        "pictures a step": process.total_batch,
        **{name: getattr(process.settings, name) for name in _SAME},
    }
