"""Keys and shapes of real adapter files, on the models they were made for: every key lands, nothing is left over."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from architectures import MODELS
from lorry.binding import Plan, bind
from lorry.dialects import read_adapter
from lorry.files import TensorFile

FILES = {
    "flux_lora_kohya_format": ("flux", 494),
    "flux_lora_aitoolkit_format": ("flux", 418),
}
"""{file: (model, modules of the denoiser that it changes)}."""


@functools.cache
def model(name: str) -> nn.Module:
    build, config = MODELS[name]
    with torch.device("meta"):
        return getattr(diffusers, build)(**config)


def tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """A tensor of every shape in a header that takes the memory of one number; alphas are 1."""
    keys: dict[str, list[int]] = json.loads((folder / "headers" / f"{name}.json").read_text("utf-8"))["keys"]
    return {key: torch.ones(()).expand(shape) for key, shape in keys.items()}


def plan_of(name: str, given: dict[str, Tensor]) -> Plan:
    models: dict[str, Any] = {"transformer": model(FILES[name][0])}
    return bind(read_adapter(TensorFile(given, {}, name, None)), models)


@pytest.mark.parametrize("name", FILES)
def test_every_key_of_a_real_file_lands_on_the_model_it_was_made_for(name: str, shared_dir: Path) -> None:
    given = tensors(shared_dir, name)
    plan = plan_of(name, given)
    assert plan.report.applied == plan.report.key_count == len(given)
    assert plan.report.targets == FILES[name][1]
