"""Files of Flux in the names of its first trainers act on diffusers' model as their formulas say."""

from __future__ import annotations

import torch
from torch import Tensor

from lorry import attach
from models import tiny_flux_pipeline

RANK = 2


def pair(stem: str, rows: int, columns: int) -> dict[str, Tensor]:
    return {f"{stem}.down.weight": torch.randn(RANK, columns), f"{stem}.up.weight": torch.randn(rows, RANK)}


def test_xlabs_processors_change_the_projections_of_both_kinds_of_block() -> None:
    pipe = attach(tiny_flux_pipeline())
    model = pipe.transformer
    double, single = model.transformer_blocks[0].attn, model.single_transformer_blocks[0]
    width = double.to_q.in_features
    whole = single.proj_out.in_features
    tensors = {
        **pair("double_blocks.0.processor.qkv_lora1", 3 * width, width),
        **pair("double_blocks.0.processor.proj_lora1", width, width),
        **pair("double_blocks.0.processor.qkv_lora2", 3 * width, width),
        **pair("double_blocks.0.processor.proj_lora2", width, width),
        **pair("single_blocks.0.processor.qkv_lora", 3 * width, width),
        **pair("single_blocks.0.processor.proj_lora", width, whole),
    }
    targets = {
        "double_blocks.0.processor.qkv_lora1": (double.to_q, double.to_k, double.to_v),
        "double_blocks.0.processor.proj_lora1": (double.to_out[0],),
        "double_blocks.0.processor.qkv_lora2": (double.add_q_proj, double.add_k_proj, double.add_v_proj),
        "double_blocks.0.processor.proj_lora2": (double.to_add_out,),
        "single_blocks.0.processor.qkv_lora": (single.attn.to_q, single.attn.to_k, single.attn.to_v),
        "single_blocks.0.processor.proj_lora": (single.proj_out,),
    }
    before = {name: p.clone() for name, p in model.named_parameters()}
    report = pipe.load_lora_weights(tensors)
    assert (report.dialect, report.applied, report.targets) == ("xlabs", 12, 12)
    pipe.fuse_lora()
    for stem, modules in targets.items():
        change = tensors[f"{stem}.up.weight"] @ tensors[f"{stem}.down.weight"]
        for module, rows in zip(modules, change.chunk(len(modules)), strict=True):
            name = next(name for name, p in model.named_parameters() if p is module.weight)
            torch.testing.assert_close(module.weight.detach(), before.pop(name) + rows)
    assert all(torch.equal(model.get_parameter(name), tensor) for name, tensor in before.items())
    pipe.unload_lora_weights()


def test_the_scale_of_a_norm_is_replaced_whatever_the_strength_and_comes_back() -> None:
    pipe = attach(tiny_flux_pipeline())
    norm = pipe.transformer.transformer_blocks[0].attn.norm_q
    before, value = norm.weight.detach().clone(), torch.randn_like(norm.weight)
    spellings = {
        "": "double_blocks.0.img_attn.norm.query_norm.scale",
        "diffusion_model.": "diffusion_model.double_blocks.0.img_attn.norm.query_norm.scale.set_weight",
    }
    for container, key in spellings.items():
        layer = f"{container}double_blocks.0.img_attn.proj"
        width = pipe.transformer.transformer_blocks[0].attn.to_q.in_features
        factors = {
            f"{layer}.lora_A.weight": torch.randn(2, width),
            f"{layer}.lora_B.weight": torch.randn(width, 2),
        }
        pipe.load_lora_weights({**factors, key: value}, adapter_name="a")
        pipe.set_adapters("a", 0.5)
        pipe.fuse_lora()
        torch.testing.assert_close(norm.weight.detach(), value)
        pipe.unload_lora_weights()
        assert torch.equal(norm.weight, before)
