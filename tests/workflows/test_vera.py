"""VeRA, whose tensors do not tell how many columns a layer has, in the jobs that compute with files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorry.adapters.mixing import Method
from lorry.algebra import VeraDelta
from lorry.dialects import read_adapter
from lorry.errors import StateError, UnsupportedAdapterError
from lorry.files import read_adapter_file, write_safetensors
from lorry.workflows.approximating import Approximator
from lorry.workflows.combine import combine_files
from lorry.workflows.compare import compare_files
from lorry.workflows.convert import convert_file
from lorry.workflows.measure import measure_file
from lorry.workflows.recipes import Recipe
from lorry.workflows.resize import Budget, resize_file
from lorry.workflows.trade_off import preview
from workflows.files import check_sum, full_deltas, rand

NAME = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
SHAPE = (24, 40)


@pytest.fixture
def vera(tmp_path: Path) -> Path:
    """A folder as PEFT writes it."""
    tensors = {
        "base_model.vera_A": rand(3, 50, seed=1),
        "base_model.vera_B": rand(30, 3, seed=2),
        f"base_model.model.{NAME}.vera_lambda_b": rand(SHAPE[0], seed=3),
        f"base_model.model.{NAME}.vera_lambda_d": rand(3, seed=4),
    }
    (tmp_path / "vera").mkdir()
    write_safetensors(tmp_path / "vera" / "adapter_model.safetensors", tensors)
    (tmp_path / "vera" / "adapter_config.json").write_text(json.dumps({"peft_type": "VERA", "r": 3}))
    return tmp_path / "vera"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    tensors = {
        f"{NAME}.lora_A.weight": rand(2, SHAPE[1], seed=5),
        f"{NAME}.lora_B.weight": rand(SHAPE[0], 2, seed=6),
    }
    return write_safetensors(tmp_path / "lora.safetensors", tensors)


def fitted(path: Path) -> dict[str, Tensor]:
    """The full delta of a VeRA for a weight of `SHAPE`."""
    (entry,) = read_adapter(read_adapter_file(path)).entries
    assert isinstance(entry.delta, VeraDelta)
    delta = entry.delta.fitted(SHAPE)
    assert delta is not None
    return {f"denoiser.{NAME.removeprefix('unet.').replace('.', '_')}": delta.weight(dtype=torch.float64)}


@pytest.mark.parametrize("factor", [1.0, -0.5])
def test_alone_it_keeps_its_family_at_any_factor(factor: float, vera: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    combine_files([(vera, factor)], out)
    check_sum(fitted(out), (fitted(vera), factor))


@pytest.mark.parametrize("first", ["vera", "lora"])
def test_beside_another_it_has_that_ones_columns(first: str, vera: Path, lora: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    sources = [(vera, 0.5), (lora, -2.0)]
    combine_files(sources if first == "vera" else sources[::-1], out)
    check_sum(full_deltas(out), (fitted(vera), 0.5), (full_deltas(lora), -2.0))
    assert compare_files(vera, lora).left_out == 0
    report = combine_files(sources, out, Recipe(method=Method.TIES))
    assert report.errors.total > 0.01


def test_alone_it_has_no_matrix_of_its_own(vera: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert measure_file(vera).left_out == 1
    assert resize_file(vera, out, Budget(rank=1)).cut == 0
    check_sum(fitted(out), (fitted(vera), 1.0))
    with pytest.raises(StateError, match="no layer of it has a rank that can be cut"):
        preview(vera)
    with pytest.raises(UnsupportedAdapterError, match="VeRA: what it adds depends on the weight"):
        combine_files([(vera, 1.0), (vera, 1.0)], out)
    with pytest.raises(
        UnsupportedAdapterError, match=r"what VeRA adds depends on the base weight.*`--base FOLDER`"
    ):
        convert_file(vera, tmp_path / "c.safetensors", "kohya", approximator=Approximator())
