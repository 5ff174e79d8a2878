"""A loaded adapter has the memory that its file was read into, and no other."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lorry.algebra import LoraDelta
from lorry.errors import BrokenFileError, NotFiniteError
from lorry.files import read_safetensors, safetensors_reader, write_safetensors
from lorry.memory import new_block
from lorry.patching.resident import Resident
from lorry.pipelines import loading
from pipelines.unet_alone import UnetAlone, attention_loras
from snapshots import check_same, snapshot


def factors(pipeline: UnetAlone) -> list[torch.Tensor]:
    resident = pipeline.unet.lorry.adapters["one"]
    return [tensor for delta in resident.deltas.values() for tensor in delta.tensors().values()]


def storages(tensors: list[torch.Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def test_a_files_bytes_stay_where_they_were_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: list[torch.Tensor] = []

    def noted(nbytes: int) -> torch.Tensor:
        blocks.append(new_block(nbytes))
        return blocks[-1]

    monkeypatch.setattr(safetensors_reader, "new_block", noted)
    pipeline = UnetAlone()
    tensors = attention_loras(pipeline)
    path = write_safetensors(tmp_path / "one.safetensors", tensors)
    pipeline.load_lora_weights(str(path), adapter_name="one")
    module = next(m for m in pipeline.unet.modules() if getattr(m, "lorry_down", None) is not None)
    place = blocks[0].untyped_storage().data_ptr()
    assert len(blocks) == 1
    assert storages(factors(pipeline)) == {place}
    assert module.lorry_down.untyped_storage().data_ptr() == place
    assert pipeline.unet.lorry.nbytes < 1.1 * sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("parts", [False, True], ids=["one file", "parts"])
@pytest.mark.parametrize("change", ["overwritten", "cut off"])
def test_a_file_that_is_changed_after_loading_changes_no_weight(
    change: str, parts: bool, tmp_path: Path
) -> None:
    pipeline = UnetAlone()
    tensors = attention_loras(pipeline)
    path = write_safetensors(tmp_path / "one.safetensors", tensors)
    index = tmp_path / "one.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, path.name)}))
    pipeline.load_lora_weights(str(index if parts else path), adapter_name="one")
    before = [tensor.clone() for tensor in factors(pipeline)]
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(0)
        file.write(b"\xff" * (size if change == "overwritten" else 0))
    for now, then in zip(factors(pipeline), before, strict=True):
        assert torch.equal(now, then)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files are read by a thread too, which takes its time."""
    fill = safetensors_reader._fill

    def late(*given: Any) -> None:
        time.sleep(0.1)
        fill(*given)

    for module in (safetensors_reader, loading):
        monkeypatch.setattr(module, "LARGE", 0)
    monkeypatch.setattr(safetensors_reader, "_fill", late)


@pytest.mark.usefixtures("slow")
def test_a_file_can_be_had_before_its_bytes(tmp_path: Path) -> None:
    tensors = {"a": torch.full((4, 4), 7.0), "b": torch.arange(5)}
    path = write_safetensors(tmp_path / "one.safetensors", tensors)
    early = read_safetensors(path, into_memory=True, early=True)
    assert {key: tensor.shape for key, tensor in early.tensors.items()} == {"a": (4, 4), "b": (5,)}
    assert not torch.equal(early.tensors["a"], tensors["a"])
    early.arrived()
    for found in (early, read_safetensors(path, into_memory=True)):
        assert all(torch.equal(found.tensors[key], tensors[key]) for key in tensors)


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("alphas", [True, False], ids=["with alphas", "without"])
def test_nothing_is_looked_at_before_it_is_read(
    alphas: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks: list[torch.Tensor] = []

    def used_before(nbytes: int) -> torch.Tensor:
        """Memory that holds the first file still."""
        blocks.append(torch.empty(nbytes, dtype=torch.uint8))
        return blocks[-1].copy_(blocks[0]) if len(blocks) > 1 else blocks[0]

    monkeypatch.setattr(safetensors_reader, "new_block", used_before)
    pipeline = UnetAlone()
    drawn = []
    for seed in (0, 1, 2):  # of a layout that is new, and of one that is known
        torch.manual_seed(seed)
        shapes = {key: tensor.shape for key, tensor in attention_loras(pipeline).items()}
        tensors = {
            key: torch.randn(shape) if seed < 2 else torch.zeros(shape) for key, shape in shapes.items()
        }
        if alphas:
            names = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith("lora_A.weight")]
            tensors |= {f"{name}.alpha": torch.tensor(3.0 + seed) for name in names}
        path = write_safetensors(tmp_path / f"{seed}.safetensors", tensors)
        for given in (tensors, str(path)):
            report = pipeline.load_lora_weights(given)
            assert report.adds_nothing == (seed == 2)
            modules = [m for m in pipeline.unet.modules() if getattr(m, "lorry_down", None) is not None]
            drawn.append([(m.lorry_up * m.lorry_scale) @ m.lorry_down for m in modules])
            pipeline.unload_lora_weights()
    for of_a_dict, of_a_file in zip(drawn[::2], drawn[1::2], strict=True):
        assert len(of_a_dict) == len(of_a_file) > 0
        assert all(map(torch.equal, of_a_dict, of_a_file))


@pytest.mark.usefixtures("slow")
def test_numbers_are_looked_through_when_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        safetensors_reader, "new_block", lambda nbytes: torch.zeros(nbytes, dtype=torch.uint8)
    )
    pipeline = UnetAlone()
    tensors = attention_loras(pipeline)
    pipeline.load_lora_weights(str(write_safetensors(tmp_path / "one.safetensors", tensors)))
    next(iter(tensors.values()))[-1, -1] = torch.nan
    with pytest.raises(NotFiniteError):
        pipeline.load_lora_weights(str(write_safetensors(tmp_path / "two.safetensors", tensors)))


@pytest.mark.usefixtures("slow")
def test_a_file_that_is_cut_off_while_it_is_read_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = UnetAlone()
    path = write_safetensors(tmp_path / "one.safetensors", attention_loras(pipeline))
    pipeline.load_lora_weights(str(path))
    pipeline.unload_lora_weights()
    before, fill = snapshot(pipeline.unet), safetensors_reader._fill

    def of_less(whole: Any, file: Any, source: str) -> None:
        os.truncate(path, path.stat().st_size - 4)
        fill(whole, file, source)

    monkeypatch.setattr(safetensors_reader, "_fill", of_less)
    with pytest.raises(BrokenFileError, match=r"one\.safetensors: expected \d+ bytes of data, got less"):
        pipeline.load_lora_weights(str(path))
    check_same(snapshot(pipeline.unet), before)


def test_a_dictionarys_tensors_are_copied() -> None:
    pipeline = UnetAlone()
    tensors = attention_loras(pipeline)
    pipeline.load_lora_weights(tensors, adapter_name="one")
    assert storages(factors(pipeline)).isdisjoint(storages(list(tensors.values())))


def test_a_file_of_which_much_is_unused_is_copied_and_let_go(tmp_path: Path) -> None:
    pipeline = UnetAlone()
    pipeline.components["text_encoder"] = None
    tensors = attention_loras(pipeline)
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    names = ("text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.1.self_attn.q_proj")
    for name in names:
        tensors[f"text_encoder.{name}.lora_A.weight"] = torch.randn(64, 1000)
        tensors[f"text_encoder.{name}.lora_B.weight"] = torch.randn(1000, 64)
    path = write_safetensors(tmp_path / "one.safetensors", tensors)
    pipeline.load_lora_weights(str(path), adapter_name="one", strict=False)
    assert factors(pipeline)[0].untyped_storage().nbytes() < 2 * nbytes


def test_what_is_loaded_in_inference_mode_can_be_changed_later(tmp_path: Path) -> None:
    pipeline = UnetAlone()
    path = write_safetensors(tmp_path / "one.safetensors", attention_loras(pipeline))
    with torch.inference_mode():
        pipeline.load_lora_weights(str(path), adapter_name="one")
    assert not any(tensor.is_inference() for tensor in factors(pipeline))


def test_layers_that_share_a_tensor_of_a_file_move_one_by_one() -> None:
    modules = {"a": torch.nn.Linear(3, 5), "b": torch.nn.Linear(3, 5)}
    down = torch.ones(2, 3)
    deltas = {path: LoraDelta(down, torch.ones(5, 2)) for path in modules}
    resident = Resident.of(deltas, modules, owned=True)
    one, other = (resident.deltas[path].tensors()["down"] for path in modules)
    assert one is not other
    assert one.data_ptr() == other.data_ptr() == down.data_ptr()
