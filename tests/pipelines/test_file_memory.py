"""A loaded adapter has the memory that its file was read into, and no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lorry.algebra import LoraDelta
from lorry.files import safetensors_reader, write_safetensors
from lorry.memory import new_block
from lorry.patching.resident import Resident
from pipelines.unet_alone import UnetAlone, attention_loras


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
