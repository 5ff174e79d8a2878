"""PEFT's folders, written as they are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lorry.errors import FileError
from lorry.files import TensorFile, read_adapter_file, write_folders

CONFIGS = {
    "unet.r": 4,
    "unet.peft_type": "LORA",
    "text_encoder.r": 2,
    "text_encoder.target_modules": ["q_proj"],
}


def joined() -> TensorFile:
    tensors = {
        "unet.base_model.model.a.lora_A.weight": torch.randn(4, 3),
        "text_encoder.base_model.model.b.lora_A.weight": torch.randn(2, 5),
    }
    return TensorFile(tensors, {"lora_adapter_metadata": json.dumps(CONFIGS), "modelspec.title": "x"})


def test_a_folder_for_each_component_is_read_back_as_it_was(tmp_path: Path) -> None:
    file = joined()
    write_folders(tmp_path / "out", file)
    assert {path.name for path in (tmp_path / "out" / "unet").iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    assert json.loads((tmp_path / "out" / "unet" / "adapter_config.json").read_text()) == {
        "r": 4,
        "peft_type": "LORA",
    }
    found = read_adapter_file(tmp_path / "out")
    assert json.loads(found.metadata["lora_adapter_metadata"]) == CONFIGS
    assert found.metadata["modelspec.title"] == "x"
    assert found.tensors.keys() == file.tensors.keys()
    assert all(torch.equal(found.tensors[key], tensor) for key, tensor in file.tensors.items())
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "out" / "text_encoder_2").mkdir(parents=True)
    write_folders(tmp_path / "out", joined())
    write_folders(tmp_path / "out", joined())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"unet", "text_encoder"}


@pytest.mark.parametrize(
    "lost",
    ["unet/diffusion_pytorch_model.safetensors", "notes.txt", "cat/adapter_config.json", "unet/unet/x"],
)
def test_a_folder_that_holds_something_else_is_not_replaced(tmp_path: Path, lost: str) -> None:
    write_folders(tmp_path / "out", joined())
    (tmp_path / "out" / lost).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "out" / lost).write_text("x")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(FileError, match=r"out is there already and holds .*, so that it is not overwritten"):
        write_folders(tmp_path / "out", joined())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_what_cannot_be_written_leaves_the_disk_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "out" / "unet").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    bad = TensorFile({"unet.a": torch.empty(2, device="meta")})
    with pytest.raises(FileError, match="cannot be written to safetensors"):
        write_folders(tmp_path / "out", bad)
    for path in (tmp_path / "file", tmp_path / "no" / "out"):
        with pytest.raises(FileError, match="expected the place of a folder"):
            write_folders(path, joined())
    assert sorted(tmp_path.rglob("*")) == before
