"""Differences of parameters that belong to a block and to no layer in it: refused with the reason, or left out."""

from __future__ import annotations

import diffusers
import pytest
import torch
from torch import Tensor, nn

from lorry.binding import bind, report_on
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


def file(key: str) -> TensorFile:
    stem = "diffusion_model.blocks.0.self_attn.q"
    tensors: dict[str, Tensor] = {f"{stem}.lora_down.weight": torch.ones(2, 32), key: torch.ones(1, 6, 32)}
    return TensorFile({**tensors, f"{stem}.lora_up.weight": torch.ones(32, 2)})


@pytest.mark.parametrize("key", KEYS)
def test_a_parameter_of_a_block_is_refused_by_name_and_left_out_when_asked(key: str) -> None:
    adapter, models = read_adapter(file(key)), {"transformer": wan()}
    with pytest.raises(ShapeMismatchError, match="it is a parameter of its block and of no layer") as refused:
        bind(adapter, models)
    assert f"`{KEYS[key]}`" in str(refused.value)
    assert "another base model" not in str(refused.value)
    plan = bind(adapter, models, strict=False)
    assert list(plan.deltas["transformer"]) == ["blocks.0.attn1.to_q"]
    assert (plan.report.applied, plan.report.mismatched_keys, plan.report.unknown) == (2, 1, ())
    assert report_on(adapter, models).mismatched[0].keys == (key,)


def test_a_name_that_no_parameter_has_stays_unknown() -> None:
    adapter = read_adapter(file("diffusion_model.blocks.7.diff_m"))
    assert report_on(adapter, {"transformer": wan()}).unknown == ("diffusion_model.blocks.7.diff_m",)
