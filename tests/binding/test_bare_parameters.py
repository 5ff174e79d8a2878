"""Differences of parameters that belong to a block and to no layer in it: found by name."""

from __future__ import annotations

import diffusers
import pytest
import torch
from torch import Tensor, nn

from lorry.binding import bare_parameters, bind, report_on, weight_shape
from lorry.dialects import read_adapter
from lorry.errors import ShapeMismatchError
from lorry.files import TensorFile

KEYS = {
    "diffusion_model.blocks.0.diff_m": "blocks.0.scale_shift_table",
    "diffusion_model.blocks.0.modulation.diff": "blocks.0.scale_shift_table",
    "diffusion_model.head.modulation.diff": "scale_shift_table",
    "lora_unet_blocks_0_modulation.diff": "blocks.0.scale_shift_table",
    "transformer.blocks.0.scale_shift_table.diff": "blocks.0.scale_shift_table",
}


def wan() -> nn.Module:
    with torch.device("meta"):
        return diffusers.WanTransformer3DModel(num_layers=1, num_attention_heads=2, attention_head_dim=16)


def file(key: str, shape: tuple[int, ...] | None = None) -> TensorFile:
    stem, rows = "diffusion_model.blocks.0.self_attn.q", 2 if "head" in key else 6
    tensors: dict[str, Tensor] = {
        f"{stem}.lora_down.weight": torch.ones(2, 32),
        key: torch.ones(shape or (1, rows, 32)),
    }
    return TensorFile({**tensors, f"{stem}.lora_up.weight": torch.ones(32, 2)})


@pytest.mark.parametrize("key", KEYS)
def test_a_parameter_of_a_block_is_found_by_each_of_its_names(key: str) -> None:
    adapter, models = read_adapter(file(key)), {"transformer": wan()}
    plan = bind(adapter, models)
    assert plan.deltas["transformer"].keys() == {"blocks.0.attn1.to_q", KEYS[key]}
    assert (plan.report.applied, plan.report.targets, plan.report.unknown) == (3, 2, ())


def test_one_of_another_shape_is_refused_by_name() -> None:
    adapter = read_adapter(file("diffusion_model.blocks.0.diff_m", shape=(1, 5, 32)))
    with pytest.raises(
        ShapeMismatchError, match=r"`blocks\.0\.scale_shift_table`: the delta is \(1, 5, 32\)"
    ):
        bind(adapter, {"transformer": wan()})


def test_a_name_that_no_parameter_has_stays_unknown() -> None:
    adapter = read_adapter(file("diffusion_model.blocks.7.diff_m"))
    assert report_on(adapter, {"transformer": wan()}).unknown == ("diffusion_model.blocks.7.diff_m",)


def test_weights_and_biases_of_layers_are_not_bare() -> None:
    names = bare_parameters(wan())
    assert list(names) == ["scale_shift_table", "blocks.0.scale_shift_table"]
    assert weight_shape(names["scale_shift_table"]) == (1, 2, 32)
