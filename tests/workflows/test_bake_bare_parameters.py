"""Differences of a block's own parameters, fused into checkpoints of both namings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorry.binding import bare_parameters, carriers
from lorry.binding.tables import original_names
from lorry.workflows.bake import bake_files
from models import tiny_wan_transformer

ADAPTER = {
    "diffusion_model.blocks.0.diff_m": "blocks.0.scale_shift_table",
    "diffusion_model.blocks.1.modulation.diff": "blocks.1.scale_shift_table",
    "diffusion_model.head.modulation.diff": "scale_shift_table",
}


def adapter(model: Any) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = {name: one.weight.shape for name, one in bare_parameters(model).items()}
    return {key: torch.randn(shapes[name], generator=random) for key, name in ADAPTER.items()}


def in_original_names(model: Any) -> dict[str, str]:
    """{a parameter of the model: what the original checkpoint calls it}; Wan's tables cut no layer."""
    state, bare = model.state_dict(), bare_parameters(model)
    names: dict[str, str] = {}
    for original, pieces in original_names(model, carriers(model)).items():
        path = pieces[0].path
        ends = ("",) if path in bare else (".weight", ".bias")
        names |= {path + end: original + end for end in ends if path + end in state}
    return {str(name): names.get(name) or str(name) for name in state}


@pytest.mark.parametrize("spelling", ["original", "diffusers"])
@pytest.mark.parametrize("layout", ["folder", "file"])
def test_each_is_added_to_its_parameter_and_nothing_else_changes(
    layout: str, spelling: str, tmp_path: Path
) -> None:
    model = tiny_wan_transformer()
    names = dict.fromkeys(model.state_dict())
    file = adapter(model)
    keys = {
        key: key if spelling == "original" else f"transformer.{name}.diff" for key, name in ADAPTER.items()
    }
    save_file({keys[key]: tensor for key, tensor in file.items()}, tmp_path / "adapter.safetensors")
    if layout == "folder":
        model.save_pretrained(tmp_path / "base")
        bake_files(tmp_path / "base", [(tmp_path / "adapter.safetensors", 0.5)], tmp_path / "out")
        baked = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
        spelt = {name: name for name in names}
    else:
        spelt = in_original_names(model)
        tensors = {spelt[name]: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(tensors, tmp_path / "base.safetensors")
        assert "head.modulation" in tensors
        out = tmp_path / "out.safetensors"
        bake_files(tmp_path / "base.safetensors", [(tmp_path / "adapter.safetensors", 0.5)], out)
        baked = load_file(out)
    added = {name: file[key] for key, name in ADAPTER.items()}
    assert baked.keys() == set(spelt.values())
    for name, tensor in model.state_dict().items():
        expected = tensor.double() + (0.5 * added[name].double() if name in added else 0)
        assert torch.equal(baked[spelt[name]], expected.float()), name
