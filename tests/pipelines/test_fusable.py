"""`lorry.fuse_support` says beforehand what `fuse_lora` does then."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.hooks import apply_layerwise_casting
from torch import nn

import lorry
from lorry.errors import FuseError, StateError, UnknownAdapterError
from lorry.patching import layers_by_kind
from patching.quantized import LAYERS
from patching.test_lossy_fusing import K_QUANTS, KINDS
from patching.test_quantized import lora
from pipelines import oracle
from pipelines.conftest import Files
from small import changing, put
from snapshots import check_same, snapshot

ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""The largest rounding error of a number, as a part of it."""


@pytest.mark.parametrize("kind", LAYERS)
def test_what_it_says_of_a_quantized_layer_is_what_fusing_does(kind: str) -> None:
    model = nn.Sequential(LAYERS[kind](torch.float32)).eval()
    (row,) = layers_by_kind("unet", model)
    put(model, deltas=lora())
    says = "side path only" if kind in K_QUANTS else "with loss"
    assert (row.fusing, row.layers, row.rounding) == (says, 1, None)
    assert row.reason is not None
    assert "dequantize the base" in row.reason
    with pytest.raises(FuseError, match="To fuse, dequantize the base"), changing(model) as (state, undo):
        state.fuse(undo)
    assert ("lossy=True" in row.reason) == (says == "with loss")


@pytest.mark.parametrize("kind", KINDS)
def test_what_would_be_lost_is_said_beforehand_and_is_what_is_lost(kind: str) -> None:
    model = nn.Sequential(LAYERS[kind](torch.float32)).eval()
    before = snapshot(model)
    (row,) = layers_by_kind("unet", model)
    assert row.loss is not None
    assert 0 < row.loss.error < 0.25
    check_same(snapshot(model), before)
    put(model, "toy", 0.5, deltas=lora())
    before = snapshot(model)
    (row,) = lorry.fuse_support(model, "toy").rows
    check_same(snapshot(model), before)
    with changing(model) as (state, undo):
        lost = state.fuse(undo, lossy=True)
    assert row.loss == lost["0.weight"]
    assert row.by_layer == {"0": lost["0.weight"]}


def test_a_pipeline_fuses_with_loss_when_asked_and_says_how_much(files: Files) -> None:
    pipe: Any = oracle.ours("sd")
    apply_layerwise_casting(pipe.unet, torch.float8_e4m3fn, torch.float32)
    bare = oracle.drawn(pipe)
    pipe.load_lora_weights(files.get("sd"), adapter_name="toy")
    before = snapshot(pipe.unet)
    with pytest.raises(FuseError, match=r"lossy=True"):
        pipe.fuse_lora()
    check_same(snapshot(pipe.unet), before)
    said = {row.kind: row for row in lorry.fuse_support(pipe, "toy").rows if row.component == "unet"}
    lost = pipe.fuse_lora(lossy=True)
    assert lost
    assert lost.by_layer == {f"unet.{path}.weight": loss for path, loss in said["float8"].by_layer.items()}
    assert said["float8"].loss is not None
    assert said["float8"].loss.error == pytest.approx(lost.total.error)
    assert lost.total.survives == pytest.approx(1.0, abs=0.05)
    assert str(lost).startswith(f"{len(lost.by_layer)} weights were quantized again: off by ")
    fused = oracle.drawn(pipe)
    assert not torch.equal(fused, bare)
    pipe.unload_lora_weights()
    assert torch.equal(oracle.drawn(pipe), bare)


def test_where_all_is_exact_nothing_is_said_to_be_lost(files: Files) -> None:
    pipe: Any = oracle.ours("sd")
    pipe.load_lora_weights(files.get("sd"), adapter_name="toy")
    lost = pipe.fuse_lora(lossy=True)
    assert not lost
    assert str(lost) == "nothing was quantized again"
    pipe.unfuse_lora()
    assert lorry.fuse_support(pipe)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_plain_layers_fuse_exactly_and_their_one_rounding_is_measured(
    dtype: torch.dtype, files: Files
) -> None:
    pipe: Any = oracle.ours("sd")
    pipe.unet.to(dtype)
    pipe.text_encoder.to(dtype)
    before = snapshot(pipe.unet)
    support = lorry.fuse_support(pipe)
    check_same(snapshot(pipe.unet), before)
    assert support
    assert [row.component for row in support.rows] == ["unet", "text_encoder"]
    for row in support.rows:
        assert row.rounding is not None
        assert ROUNDING[dtype] / 8 < row.rounding < ROUNDING[dtype]
    pipe.load_lora_weights(files.get("sd"), adapter_name="toy")
    pipe.fuse_lora()
    assert lorry.fuse_support(pipe.unet).rows[0].layers == support.rows[0].layers


def test_an_adapter_counts_by_its_own_layers(files: Files) -> None:
    pipe: Any = oracle.ours("sd")
    pipe.load_lora_weights(files.get("sd", "a", text=False), adapter_name="toy")
    support = lorry.fuse_support(pipe, "toy")
    assert sum(row.layers for row in support.rows) == len(pipe.unet.lorry.adapters["toy"].deltas)
    assert {row.component for row in support.rows} == {"unet"}
    with pytest.raises(UnknownAdapterError, match="Did you mean 'toy'"):
        lorry.fuse_support(pipe, "toi")


def test_a_base_of_two_kinds_has_a_row_for_each_and_the_table_says_why(files: Files) -> None:
    pipe: Any = oracle.ours("sd")
    apply_layerwise_casting(
        pipe.unet, torch.float8_e4m3fn, torch.float32, skip_modules_pattern=("mid_block",)
    )
    support = lorry.fuse_support(pipe)
    assert not support
    unet = {row.kind: row for row in support.rows if row.component == "unet"}
    assert unet.keys() == {"plain numbers, float32", "float8"}
    assert unet["float8"].fusing == "with loss"
    lines = str(support).splitlines()
    head = "component layers their weights fusing rounding of the change arrives"
    assert lines[0].split() == head.split()
    assert any("float8" in line and "with loss" in line and line.endswith("%") for line in lines)
    assert "Leave the adapter unfused" in lines[-1]
    pipe.load_lora_weights(files.get("sd"), adapter_name="toy")
    with pytest.raises(FuseError, match="float8"):
        pipe.fuse_lora()


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(StateError, match="expected a pipeline or a model"):
        lorry.fuse_support(object)
