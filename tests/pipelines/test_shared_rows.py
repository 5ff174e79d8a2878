"""Deltas for a fused layer whose rows depend on each other, on a model that keeps the layer in parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

import lorry
from lorry.dialects import read_adapter
from lorry.errors import FuseError
from lorry.files import TensorFile, read_safetensors, write_safetensors
from lorry.workflows.bake import bake_files
from models import tiny_flux_pipeline
from small import check_near
from workflows.test_checkpoints import original_state

PARTS = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
BLOCK = "single_transformer_blocks.0"


def dora_of_columns(rows: int, columns: int) -> dict[str, Tensor]:
    factors = {"lora_down.weight": torch.randn(2, columns), "lora_up.weight": torch.randn(rows, 2)}
    return {**factors, "alpha": torch.tensor(1.0), "dora_scale": torch.rand(1, columns) + 0.5}


def oft(rows: int, columns: int) -> dict[str, Tensor]:
    return {"oft_blocks": torch.randn(2, rows // 2, rows // 2) / 20, "alpha": torch.tensor(0.0)}


def limited_oft(rows: int, columns: int) -> dict[str, Tensor]:
    return {"oft_blocks": torch.randn(2, rows // 2, rows // 2), "alpha": torch.tensor(0.01)}


def boft(rows: int, columns: int) -> dict[str, Tensor]:
    return {"oft_blocks": torch.randn(1, 2, rows // 2, rows // 2) / 20, "alpha": torch.tensor(0.0)}


Make = Callable[[int, int], Mapping[str, Tensor]]
FAMILIES: Mapping[str, Make] = {"DoRA": dora_of_columns, "OFT": oft, "limited OFT": limited_oft, "BOFT": boft}


def whole_of(pipe: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """What the single block's layers compute with now, as the original's one layer."""
    block = pipe.transformer.get_submodule(BLOCK)
    return torch.cat([block.get_submodule(part).weight.detach().to(dtype) for part in PARTS])


def file(pipe: Any, make: Make) -> dict[str, Tensor]:
    torch.manual_seed(0)
    rows, columns = whole_of(pipe).shape
    return {
        f"lora_unet_single_blocks_0_linear1.{suffix}": t.contiguous()
        for suffix, t in make(rows, columns).items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_get_their_rows_of_what_the_whole_weight_gets(family: str, dtype: torch.dtype) -> None:
    pipe = lorry.attach(tiny_flux_pipeline().to(dtype))
    before, tensors = whole_of(pipe), file(pipe, FAMILIES[family])
    (entry,) = read_adapter(TensorFile(tensors)).entries
    delta = entry.delta.fitted(tuple(before.shape))
    assert delta is not None
    expected = before + delta.weight(before, torch.float64, 0.7)
    rtol, atol = (1e-5, 1e-6) if dtype == torch.float32 else (1e-2, 1e-3)
    report = pipe.load_lora_weights(tensors, adapter_name="a")
    assert (report.applied, report.targets) == (len(tensors), 4)
    pipe.set_adapters("a", 0.7)
    torch.testing.assert_close(whole_of(pipe), expected, rtol=rtol, atol=atol)
    pipe.fuse_lora()
    torch.testing.assert_close(whole_of(pipe), expected, rtol=rtol, atol=atol)
    pipe.unfuse_lora()
    pipe.set_adapters("a", 0.0)
    assert torch.equal(whole_of(pipe), before)
    pipe.unload_lora_weights()
    assert torch.equal(whole_of(pipe), before)


@pytest.mark.parametrize("first", ["shared", "plain"])
def test_another_adapter_that_is_fused_into_one_of_the_layers_changes_nothing_of_it(first: str) -> None:
    pipe = lorry.attach(tiny_flux_pipeline())
    before, tensors = whole_of(pipe), file(pipe, dora_of_columns)
    width = pipe.transformer.get_submodule(f"{BLOCK}.attn.to_q").weight.shape
    plain = {
        f"transformer.{BLOCK}.attn.to_q.lora_A.weight": torch.randn(2, width[1]),
        f"transformer.{BLOCK}.attn.to_q.lora_B.weight": torch.randn(width[0], 2),
    }
    pipe.load_lora_weights(plain, adapter_name="plain")
    pipe.load_lora_weights(tensors, adapter_name="shared")
    pipe.set_adapters(["plain", "shared"])
    together = whole_of(pipe)
    pipe.fuse_lora(adapter_names=[first])
    got, expected = plus_side(pipe, first, plain), plus_side(pipe, "none", plain, together)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    pipe.fuse_lora()
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert torch.equal(whole_of(pipe), before)


def plus_side(pipe: Any, fused: str, plain: Mapping[str, Tensor], weights: Tensor | None = None) -> Tensor:
    """The whole weight with what acts beside it: the plain adapter's product, unless that is fused."""
    found = (whole_of(pipe) if weights is None else weights).clone()
    if fused != "plain":
        down, up = (t.double() for t in plain.values())
        found[: up.shape[0]] += up @ down
    return found


def test_a_model_that_fuses_some_of_the_layers_gets_the_same_rows() -> None:
    pipe = lorry.attach(tiny_flux_pipeline())
    before, tensors = whole_of(pipe), file(pipe, dora_of_columns)
    (entry,) = read_adapter(TensorFile(tensors)).entries
    expected = before + entry.delta.weight(before, torch.float64)
    pipe.transformer.fuse_qkv_projections()
    block = pipe.transformer.get_submodule(BLOCK)
    report = pipe.load_lora_weights(tensors)
    assert report.targets == 2
    now = torch.cat([layer.weight.detach().double() for layer in (block.attn.to_qkv, block.proj_mlp)])
    torch.testing.assert_close(now, expected, rtol=1e-5, atol=1e-6)
    pipe.unload_lora_weights()


def test_a_whole_file_is_supported_and_prepared_models_take_it_too() -> None:
    pipe, plain = (lorry.attach(tiny_flux_pipeline()) for _ in range(2))
    tensors = file(pipe, oft)
    assert lorry.is_supported(tensors, pipe)
    lorry.prepare(pipe, rank=4)
    for each in (pipe, plain):
        each.load_lora_weights(tensors)
    assert torch.equal(whole_of(pipe), whole_of(plain))


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_originals_it_is_fused_all_the_same(family: str, split: bool) -> None:
    kept, pipe = (lorry.attach(tiny_flux_pipeline()) for _ in range(2))
    for each, originals in ((kept, "device"), (pipe, "none")):
        if not split:
            each.transformer.fuse_qkv_projections()
        each.load_lora_weights(file(kept, FAMILIES[family]), adapter_name="a")
        each.fuse_lora(originals=originals)
    names = {name for name, _ in pipe.transformer.named_parameters() if name.startswith(BLOCK)}
    assert {name: torch.equal(kept.transformer.get_parameter(name), pipe.transformer.get_parameter(name))
            for name in names} == dict.fromkeys(names, True)  # fmt: skip
    with pytest.raises(FuseError, match=r'fused with `originals="none"`'):
        pipe.unfuse_lora()


def test_where_a_part_of_the_layer_is_fused_without_an_original_it_is_refused_and_nothing_is_changed() -> (
    None
):
    pipe = lorry.attach(tiny_flux_pipeline())
    width = pipe.transformer.get_submodule(f"{BLOCK}.attn.to_q").weight.shape
    plain = {
        f"transformer.{BLOCK}.attn.to_q.lora_A.weight": torch.randn(2, width[1]),
        f"transformer.{BLOCK}.attn.to_q.lora_B.weight": torch.randn(width[0], 2),
    }
    pipe.load_lora_weights(plain, adapter_name="plain")
    pipe.fuse_lora(originals="none")
    before, shared = whole_of(pipe), file(pipe, oft)
    with pytest.raises(FuseError, match=r'needs the weight as it was before.*originals="none"'):
        pipe.load_lora_weights(shared, adapter_name="a")
    assert torch.equal(whole_of(pipe), before)
    assert pipe.get_list_adapters() == {"transformer": ["plain"]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_is_baked_to_the_bits_that_fusing_gives(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    pipe = lorry.attach(tiny_flux_pipeline().to(dtype))
    pipe.transformer.save_pretrained(tmp_path / "transformer")
    write_safetensors(tmp_path / "a.safetensors", file(pipe, FAMILIES[family]))
    bake_files(tmp_path / "transformer", [(tmp_path / "a.safetensors", 0.7)], tmp_path / "out")
    pipe.load_lora_weights(tmp_path / "a.safetensors", adapter_name="a")
    pipe.set_adapters("a", 0.7)
    pipe.fuse_lora()
    baked = FluxTransformer2DModel.from_pretrained(tmp_path / "out", torch_dtype=dtype)
    fused = pipe.transformer.state_dict()
    assert all(torch.equal(fused[name], tensor) for name, tensor in baked.state_dict().items())


def test_one_file_of_the_original_model_is_baked_to_the_same_bits(tmp_path: Path) -> None:
    pipe = lorry.attach(tiny_flux_pipeline())
    write_safetensors(tmp_path / "flux.safetensors", original_state(pipe.transformer))
    write_safetensors(tmp_path / "a.safetensors", file(pipe, dora_of_columns))
    bake_files(
        tmp_path / "flux.safetensors", [(tmp_path / "a.safetensors", 0.7)], tmp_path / "out.safetensors"
    )
    pipe.load_lora_weights(tmp_path / "a.safetensors", adapter_name="a")
    pipe.set_adapters("a", 0.7)
    pipe.fuse_lora()
    baked = read_safetensors(tmp_path / "out.safetensors").tensors
    fused = original_state(pipe.transformer)
    assert baked.keys() == fused.keys()
    assert all(torch.equal(baked[key], tensor) for key, tensor in fused.items())


@pytest.mark.parametrize("prepared", [False, True], ids=["", "prepared"])
@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_made_anew_when_the_model_is_cast(family: str, prepared: bool) -> None:
    pipe, cast = (lorry.attach(tiny_flux_pipeline()) for _ in range(2))
    tensors = file(pipe, FAMILIES[family])
    cast.transformer.to(torch.bfloat16)
    if prepared:
        lorry.prepare(pipe, 4)
    for one in (pipe, cast):
        one.load_lora_weights(tensors, adapter_name="a")
    pipe.transformer.to(torch.bfloat16)
    assert pipe.transformer.get_submodule(f"{BLOCK}.{PARTS[0]}").weight.dtype == torch.bfloat16
    check_near(whole_of(pipe), whole_of(cast), 1e-2)  # some rows were made when others were not cast yet
