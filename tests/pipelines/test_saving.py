"""Saving: nothing but an adapter is overwritten, nothing outside the folder is written, and never half a file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorry import LoraLoaderMixin
from lorry.errors import FileError
from lorry.files import read_pickle

LAYERS = {"to_q.lora_A.weight": torch.ones(2, 4), "to_q.lora_B.weight": torch.zeros(4, 2)}
NAME = "pytorch_lora_weights.safetensors"
ROOT = Path(__file__).parents[2]


def checkpoint(path: Path) -> None:
    save_file({"model.diffusion_model.out.2.weight": torch.ones(3)}, path)


def notes(path: Path) -> None:
    path.write_text("Do not lose this.")


def picture(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))


@pytest.mark.parametrize("make", [checkpoint, notes, picture])
def test_what_is_no_adapter_is_not_overwritten(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / NAME)
    before = (tmp_path / NAME).read_bytes()
    for save in (None, lambda *_: pytest.fail("it was called")):
        with pytest.raises(FileError, match=f"{NAME} is there already and is no adapter"):
            LoraLoaderMixin.save_lora_weights(tmp_path, unet_lora_layers=LAYERS, save_function=save)
    assert (tmp_path / NAME).read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / NAME]


@pytest.mark.parametrize("safe", [True, False])
def test_an_adapter_is_overwritten_and_so_is_an_empty_file(safe: bool, tmp_path: Path) -> None:
    name = NAME if safe else "pytorch_lora_weights.bin"
    (tmp_path / name).touch()
    for _ in range(2):
        LoraLoaderMixin.save_lora_weights(tmp_path, unet_lora_layers=LAYERS, safe_serialization=safe)
    assert list(tmp_path.iterdir()) == [tmp_path / name]
    assert (tmp_path / name).stat().st_size > 0


def test_a_pickle_has_the_same_bytes_for_the_same_tensors(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        LoraLoaderMixin.save_lora_weights(
            tmp_path / folder, unet_lora_layers=LAYERS, safe_serialization=False
        )
    one, other = (tmp_path / folder / "pytorch_lora_weights.bin" for folder in ("a", "b"))
    assert one.read_bytes() == other.read_bytes()
    assert torch.equal(read_pickle(one).tensors["unet.to_q.lora_A.weight"], torch.ones(2, 4))


@pytest.mark.parametrize("name", ["../x.safetensors", "/tmp/x.safetensors", "a/../../x.safetensors"])
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="leads out of the folder"):
        LoraLoaderMixin.save_lora_weights(tmp_path / "inside", unet_lora_layers=LAYERS, weight_name=name)
    assert not list(tmp_path.iterdir())


def test_a_process_killed_while_it_saves_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.fuzz.kill_saving", "--kills", "50", "--folder", str(tmp_path)]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(command, cwd=ROOT, env=paths, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.startswith("50 kills, 0 broken files"), found.stdout
