"""Every family is read in every spelling of module names, and means what it is made of."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dialects.conftest import assert_total
from dialects.layers import LAYERS, Layer
from lorry.adapters import Adapter
from lorry.algebra import Delta
from lorry.dialects import read_adapter
from lorry.files import TensorFile, read_header, write_safetensors
from lorry.names import DENOISER, Target

PATH = "mid_block.attentions.0.proj_in"
FLAT = PATH.replace(".", "_")
STEMS = {
    f"lora_unet_{FLAT}": ("kohya", Target(DENOISER, FLAT, True)),
    f"lora_transformer_{FLAT}": ("onetrainer", Target("transformer", FLAT, True)),
    f"lora_te1_{FLAT}": ("kohya", Target("text_encoder", FLAT, True)),
    f"lycoris_{FLAT}": ("lycoris", Target(DENOISER, FLAT, True)),
    f"unet.{PATH}": ("diffusers", Target("unet", PATH)),
    f"transformer.{PATH}": ("diffusers", Target("transformer", PATH)),
    f"diffusion_model.{PATH}": ("comfyui", Target(DENOISER, PATH)),
    PATH: ("diffusers", Target(DENOISER, PATH)),
    f"base_model.model.{PATH}": ("peft", Target(DENOISER, PATH)),
}


def file_of(layer: Layer, stem: str, **kwargs: object) -> TensorFile:
    tensors = {f"{stem}.{suffix}": tensor for suffix, tensor in layer.tensors.items()}
    return TensorFile(tensors, source="test.safetensors", **kwargs)  # pyright: ignore[reportArgumentType]


def parts_of(delta: Delta, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """What a delta adds to each parameter of a module, as bits."""
    found = {}
    for parameter, size in (("weight", shape), ("bias", shape[:1])):
        part = delta.part(parameter)
        fitted = None if part is None else part.fitted(size)
        if part is not None and fitted is None:
            raise AssertionError(f"the {parameter} does not fit {size}")
        if fitted is not None:
            base = torch.randn(size, generator=torch.Generator().manual_seed(1))
            found[parameter] = fitted.weight(base, strength=0.75)
    return found


def assert_means(adapter: Adapter, layer: Layer) -> None:
    (entry,) = adapter.entries
    found, expected = (parts_of(delta, layer.shape) for delta in (entry.delta, layer.delta))
    if type(entry.delta) is not type(layer.delta) or found.keys() != expected.keys():
        raise AssertionError(f"{entry.delta.family} with {list(found)}, not {layer.delta.family}")
    for parameter, tensor in expected.items():
        if not torch.equal(found[parameter], tensor) or not tensor.any():
            raise AssertionError(f"the delta of the {parameter} is another, or nothing")


OWN = ("oft packed of a convolution", f"base_model.model.{PATH}")
"""PEFT turns convolutions the other way."""


@pytest.mark.parametrize(("name", "stem"), [pair for pair in product(LAYERS, STEMS) if pair != OWN])
def test_a_layer_means_the_same_in_every_spelling(name: str, stem: str) -> None:
    layer = LAYERS[name]()
    file = file_of(layer, stem)
    adapter = read_adapter(file)
    assert_total(adapter, file)
    assert not adapter.unknown
    assert not adapter.ignored
    dialect, target = STEMS[stem]
    assert adapter.dialect == dialect or (adapter.dialect == "dotted-kohya" and dialect == "diffusers")
    assert adapter.entries[0].target == target
    assert adapter.entries[0].keys == tuple(sorted(file.tensors))
    assert_means(adapter, layer)


def test_an_oft_of_a_convolution_is_turned_the_other_way_by_peft_than_by_onetrainer() -> None:
    layer = LAYERS[OWN[0]]()
    (entry,) = read_adapter(file_of(layer, OWN[1])).entries
    turned, back = (parts_of(delta, layer.shape)["weight"] for delta in (entry.delta, layer.delta))
    assert not torch.allclose(turned, back)
    other = layer._replace(tensors={"oft_R.weight": -layer.tensors["oft_R.weight"]})
    (entry,) = read_adapter(file_of(other, OWN[1])).entries
    assert torch.equal(parts_of(entry.delta, layer.shape)["weight"], back)


@pytest.mark.parametrize("name", LAYERS)
def test_a_header_alone_tells_the_family_and_the_shapes(name: str, tmp_path: Path) -> None:
    layer = LAYERS[name]()
    file = file_of(layer, f"lora_unet_{FLAT}")
    path = write_safetensors(tmp_path / "x.safetensors", file.tensors)
    (found,), (expected,) = read_adapter(read_header(path)).entries, read_adapter(file).entries
    assert found.delta.family == expected.delta.family
    assert (found.delta.shape, found.delta.rank_scale) == (expected.delta.shape, expected.delta.rank_scale)
    assert found.scale_source == expected.scale_source


def test_all_families_in_one_file_are_read_whatever_the_order_of_keys() -> None:
    layers = {f"unet.blocks.{i}": make() for i, make in enumerate(LAYERS.values())}
    tensors = {f"{stem}.{s}": t for stem, layer in layers.items() for s, t in layer.tensors.items()}
    whole = read_adapter(TensorFile(tensors))
    assert len(whole.entries) == len(LAYERS)
    for seed in range(5):
        keys = list(tensors)
        random.Random(seed).shuffle(keys)
        shuffled = read_adapter(TensorFile({key: tensors[key] for key in keys}))
        assert [entry.keys for entry in shuffled.entries] == [entry.keys for entry in whole.entries]
        for one, two in zip(whole.entries, shuffled.entries, strict=True):
            assert one.delta.tensors().keys() == two.delta.tensors().keys()
            assert all(torch.equal(one.delta.tensors()[n], t) for n, t in two.delta.tensors().items())


@pytest.mark.parametrize(
    "suffixes",
    [
        {"lora_magnitude_vector": "lora_magnitude_vector.default"},
        {"lora_magnitude_vector": "lora_magnitude_vector.default.weight"},
        {"lora_B.bias": "lora_B.default.bias"},
        {"hada_w1_a": "hada_w1_a.default"},
        {"ia3_l": "ia3_l.default"},
        {"oft_R.weight": "oft_R.default.weight"},
        {"boft_R": "boft_R.default", "boft_s": "boft_s.default"},
    ],
    ids=str,
)
def test_dumps_of_live_models_carry_the_adapters_name(suffixes: dict[str, str]) -> None:
    name = next(n for n, make in LAYERS.items() if suffixes.keys() <= make().tensors.keys())
    layer = LAYERS[name]()
    renamed = {suffixes.get(suffix, suffix): tensor for suffix, tensor in layer.tensors.items()}
    assert_means(read_adapter(file_of(layer._replace(tensors=renamed), f"base_model.model.{PATH}")), layer)
