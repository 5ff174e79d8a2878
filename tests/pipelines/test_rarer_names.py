"""Layers as they are called in files that some program would not load: each acts, on the module that is meant."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lorry
from lorry.binding import weight_shape
from models import tiny_wan_pipeline
from pipelines import every
from rarer_names import CALLED, MLX
from rows import TINY

CASES = [(pipe, *case) for pipe, cases in CALLED.items() for case in cases]


@functools.cache
def pipe_of(name: str) -> Any:
    return lorry.attach(TINY[name]() if name in TINY else every.build(name))


def modules_of(pipe: Any, meant: str) -> list[Any]:
    component, _, paths = meant.partition("/")
    root, *ends = paths.split(" ")
    found = [f"{root}.{end}" for end in ends] or [root]
    return [getattr(pipe, component).get_submodule(path) for path in found]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("name", "stem", "pair", "meant"), CASES, ids=[f"{c[0]}: {c[1]}" for c in CASES])
def test_a_layer_acts_on_the_module_that_is_meant(
    name: str, stem: str, pair: tuple[str, str], meant: str
) -> None:
    pipe = pipe_of(name)
    modules = modules_of(pipe, meant)
    shapes = [tuple[int, ...](weight_shape(module) or ()) for module in modules]
    rows = [shape[0] for shape in shapes]
    down, up = noise(2, *shapes[0][1:]), noise(sum(rows), 2, *(1 for _ in shapes[0][2:]))
    factors = (down.T, up.T) if pair == MLX else (down, up)
    tensors = {f"{stem}.{suffix}": tensor for suffix, tensor in zip(pair, factors, strict=True)}
    change = (up.flatten(1) @ down.flatten(1)).unflatten(1, shapes[0][1:])
    before = [module.weight.detach().clone() for module in modules]
    report = pipe.load_lora_weights(tensors, adapter_name="a")
    try:
        assert (report.applied, report.key_count, report.targets) == (2, 2, len(modules))
        pipe.fuse_lora()
        for module, base, part in zip(modules, before, change.split(rows), strict=True):
            torch.testing.assert_close(module.weight.detach(), base + part, rtol=1e-5, atol=1e-5)
    finally:
        pipe.unload_lora_weights()
    assert all(torch.equal(module.weight, base) for module, base in zip(modules, before, strict=True))


def test_a_distillations_checkpoint_has_its_lora_under_a_name_of_its_own(tmp_path: Path) -> None:
    pipe = lorry.attach(tiny_wan_pipeline())
    layer = pipe.transformer.blocks[0].attn1.to_q
    stem = "base_model.model.blocks.0.self_attn.q"
    down, up = noise(2, layer.in_features), noise(layer.out_features, 2)
    tensors = {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    torch.save({"generator_lora": tensors, "step": 3}, tmp_path / "lora.pt")
    base = layer.weight.detach().clone()
    pipe.load_lora_weights(tmp_path / "lora.pt")
    pipe.fuse_lora()
    torch.testing.assert_close(layer.weight.detach(), base + up @ down)
