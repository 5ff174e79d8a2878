"""Adapters in several parts: read as one, exactly, or refused with what is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lorry
from files.hub_server import FakeHub
from lorry.errors import AdapterNotFoundError, BrokenFileError
from lorry.files import find_weights, hash_file, read_adapter_file, write_safetensors
from lorry.workflows import inspect_file
from models import as_adapter, random_deltas, tiny_sd_pipeline, tiny_unet

INDEX = "adapter_model.safetensors.index.json"
ONE, TWO = (f"adapter_model-0000{number}-of-00002.safetensors" for number in (1, 2))
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 8}


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    stems = [f"base_model.model.mid_block.attentions.0.{layer}" for layer in ("proj_in", "proj_out")]
    return {f"{stem}.lora_{side}.weight": torch.randn(2, 2) for stem in stems for side in "AB"}


def write_parts(folder: Path, found: Mapping[str, Tensor]) -> Path:
    """Every second tensor goes into the second part: a layer's pair is in both."""
    weight_map = {key: (ONE, TWO)[number % 2] for number, key in enumerate(found)}
    for name in (ONE, TWO):
        part = {key: tensor for key, tensor in found.items() if weight_map[key] == name}
        write_safetensors(folder / name, part, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_parts(tmp_path, tensors())


@pytest.mark.parametrize("header_only", [False, True])
def test_parts_are_read_as_one_file_with_its_config(folder: Path, header_only: bool) -> None:
    file = read_adapter_file(folder, header_only=header_only)
    assert file.tensors.keys() == tensors().keys()
    assert file.config == CONFIG
    assert file.metadata == {"format": "pt"}
    for key, tensor in tensors().items():
        assert file.tensors[key].is_meta if header_only else torch.equal(file.tensors[key], tensor)
    assert read_adapter_file(folder / INDEX).tensors.keys() == file.tensors.keys()
    assert read_adapter_file(folder, weight_name=INDEX).tensors.keys() == file.tensors.keys()


def test_a_pipeline_loads_parts_as_it_loads_the_whole(tmp_path: Path) -> None:
    pipeline = lorry.attach(tiny_sd_pipeline())
    adapter = as_adapter(random_deltas(tiny_unet(), 2))
    from lorry.dialects import get_dialect

    whole = get_dialect("kohya").write(adapter)
    write_parts(tmp_path, whole.tensors)
    (tmp_path / "adapter_config.json").unlink()
    fused = []
    for source in (tmp_path, dict(whole.tensors)):
        pipeline.load_lora_weights(source, adapter_name="a")
        pipeline.fuse_lora()
        fused.append({name: weight.clone() for name, weight in pipeline.unet.state_dict().items()})
        pipeline.unfuse_lora()
        pipeline.unload_lora_weights()
    one, two = fused
    assert all(torch.equal(one[name], two[name]) for name in one | two)
    assert any(not torch.equal(one[name], weight) for name, weight in pipeline.unet.state_dict().items())


def test_the_size_is_that_of_all_parts_and_there_is_no_hash(folder: Path) -> None:
    assert inspect_file(folder).size == sum((folder / name).stat().st_size for name in (ONE, TWO))
    with pytest.raises(AdapterNotFoundError, match="have no hash of them all"):
        hash_file(folder / INDEX)


def test_a_part_that_is_missing_is_named(folder: Path) -> None:
    (folder / TWO).unlink()
    with pytest.raises(AdapterNotFoundError, match=rf"lists 2 parts, of which '{TWO}' is not there"):
        read_adapter_file(folder)


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors", "x.bin", ""],
)
def test_an_index_leads_nowhere_else(folder: Path, name: str) -> None:
    write_safetensors(folder.parent / "secret.safetensors", tensors())
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors(), name)}))
    with pytest.raises(BrokenFileError, match="expected safetensors files beside it, got"):
        read_adapter_file(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', '{"weight_map": 3}', "\xff"]
)
def test_an_index_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(BrokenFileError, match=r"expected (JSON|a `weight_map`)"):
        read_adapter_file(folder)


def test_parts_that_hold_something_else_than_the_index_says_are_refused(folder: Path) -> None:
    write_safetensors(folder / TWO, {"base_model.model.other.lora_A.weight": torch.ones(2, 2)})
    with pytest.raises(
        BrokenFileError, match=r"expected the 2 tensors that .* got 1; .*The parts are not of one"
    ):
        read_adapter_file(folder)


def test_a_repositorys_parts_are_downloaded(fake_hub: FakeHub, folder: Path) -> None:
    fake_hub.add("a/b", {path.name: path.read_bytes() for path in folder.iterdir()})
    file = read_adapter_file("a/b")
    assert file.config == CONFIG
    assert all(torch.equal(file.tensors[key], tensor) for key, tensor in tensors().items())
    assert find_weights("a/b", local_files_only=True).name == INDEX


def test_a_repository_without_one_of_them_says_so(fake_hub: FakeHub, folder: Path) -> None:
    fake_hub.add("a/b", {path.name: path.read_bytes() for path in folder.iterdir() if path.name != TWO})
    with pytest.raises(AdapterNotFoundError, match=rf"has no file '{TWO}'"):
        read_adapter_file("a/b")
