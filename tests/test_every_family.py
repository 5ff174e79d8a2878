"""Every suffix and family on a layer of a small UNet, from loading to converting and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import formulas
import lorry
from dialects.layers import LAYERS, Layer
from dialects.test_carrying import CARRIED
from lorry.files import write_safetensors
from models import tiny_sd_pipeline, tiny_unet
from walks import (
    check_outputs,
    check_same,
    check_there_and_back,
    check_weights,
    expected_layers,
    models_of,
    walk,
    weights,
)

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
PLACES = {
    (8, 6): f"{BLOCK}.attn2.to_k",
    (8, 6, 3, 3): "conv_in",
    (8,): f"{BLOCK}.norm1",
    (1, 6): f"{BLOCK}.attn2.to_v",
}
"""Layers of the shapes that the tests' deltas have."""
OF_ANOTHER_MODEL = "stable-audio"
IN_ATTENTION = (f"{BLOCK}.attn2.to_k", f"{BLOCK}.attn2.to_v")


def pipeline(shape: tuple[int, ...], bias: bool, channels: int = 6) -> Any:
    """A pipeline whose UNet has a layer of this shape; with `bias`, where the architecture has none."""
    pipe = tiny_sd_pipeline()
    unet: Any = tiny_unet(
        in_channels=channels,
        cross_attention_dim=6,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    path = PLACES[shape]
    if shape == (1, 6) or (bias and path in IN_ATTENTION):
        unet.set_submodule(path, nn.Linear(shape[1], shape[0], bias=bias))
    pipe.register_modules(unet=unet)
    return lorry.attach(pipe)


def changes(layer: Layer, module: Any, strength: float = 1.0) -> dict[str, Tensor]:
    """What a layer's tensors add to the parameters of a module at a strength, in float64."""
    found = formulas.changes(layer.tensors, module.weight, module.bias, strength)
    return {f"{PLACES[layer.shape]}.{name}": change for name, change in found.items()}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_acts_leaves_no_trace_and_is_converted(name: str, tmp_path: Path) -> None:
    layer = LAYERS[name]()
    pipe = pipeline(layer.shape, layer.delta.part("bias") is not None)
    path = PLACES[layer.shape]
    expected = changes(layer, pipe.unet.get_submodule(path))
    assert len(expected) == sum(layer.delta.part(parameter) is not None for parameter in ("weight", "bias"))
    tensors = {f"unet.{path}.{suffix}": tensor for suffix, tensor in layer.tensors.items()}
    source = write_safetensors(tmp_path / "in.safetensors", tensors)
    report = walk(pipe, source, {"unet": expected}, strengths=())
    assert report.applied == report.key_count == len(tensors)
    carried = {dialect for dialect, names in CARRIED.items() if name in names} - {OF_ANOTHER_MODEL}
    if path not in IN_ATTENTION:
        carried.discard("attention-processors")
    assert check_there_and_back(source, report.dialect, tmp_path, models_of(pipe)) == carried


@pytest.mark.parametrize("strength", [0.5, -1.0])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_acts_at_a_strength_beside_another_and_is_taken_off_exactly(
    name: str, strength: float
) -> None:
    layer, path = LAYERS[name](), PLACES[LAYERS[name]().shape]
    pipe = pipeline(layer.shape, layer.delta.part("bias") is not None)
    module, models = pipe.unet.get_submodule(path), models_of(pipe)
    expected = changes(layer, module, strength)
    other = torch.randn(module.weight.shape) / 4
    expected[f"{path}.weight"] = expected.get(f"{path}.weight", 0.0) + 0.7 * other.double()
    layers, before = expected_layers(models, {"unet": expected}), weights(models)
    pipe.load_lora_weights(
        {f"unet.{path}.{suffix}": t for suffix, t in layer.tensors.items()}, adapter_name="it"
    )
    pipe.load_lora_weights({f"unet.{path}.diff": other}, adapter_name="other")
    pipe.set_adapters(["it", "other"], [strength, 0.7])
    check_outputs(models, layers)
    pipe.fuse_lora()
    check_weights(models, layers, before)
    pipe.unfuse_lora()
    check_same(models, before)
    check_outputs(models, layers)
    pipe.unload_lora_weights()
    check_same(models, before)


def knows_rows_alone(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file tells nothing of the input channels: what it does to a row it does to all of them."""
    factor = tensors.get("ia3_l", torch.zeros(1))
    return "oft_blocks" in tensors or int(tensors.get("on_input", torch.ones(1))) == 0 or len(factor) > 1


CONVOLUTIONS = [name for name in LAYERS if LAYERS[name]().shape == (8, 6, 3, 3)]


@pytest.mark.parametrize("strength", [1.0, -0.5])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_made_for_fewer_input_channels_it_leaves_the_others_alone(name: str, strength: float) -> None:
    layer = LAYERS[name]()
    pipe = pipeline(layer.shape, bias=False, channels=9)
    models, weight = models_of(pipe), pipe.unet.conv_in.weight
    known = weight if knows_rows_alone(layer.tensors) else weight[:, :6]
    found = formulas.changes(layer.tensors, known, pipe.unet.conv_in.bias, strength)
    if "weight" in found:
        found["weight"] = torch.nn.functional.pad(found["weight"], (0, 0, 0, 0, 0, 9 - known.shape[1]))
    expected = {f"conv_in.{parameter}": change for parameter, change in found.items()}
    layers, before = expected_layers(models, {"unet": expected}), weights(models)
    report = pipe.load_lora_weights({f"unet.conv_in.{suffix}": t for suffix, t in layer.tensors.items()})
    assert report.applied == report.key_count == len(layer.tensors)
    pipe.set_adapters(pipe.get_active_adapters(), strength)
    check_outputs(models, layers)
    pipe.fuse_lora()
    check_weights(models, layers, before)
    pipe.unload_lora_weights()
    check_same(models, before)
