"""What loading would do, asked before loading: of pipelines, folders and known bases, from headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lorry
from lorry.files import write_safetensors
from lorry.pipelines.support import Support
from models import tiny_sd_pipeline, tiny_sdxl_pipeline, tiny_unet
from snapshots import check_same, snapshot

FULL = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


def file_for(folder: Path, width: int, rows: int = 640, *more: str) -> Path:
    tensors = {
        f"unet.{FULL}.lora_A.weight": torch.ones(2, width),
        f"unet.{FULL}.lora_B.weight": torch.ones(rows, 2),
        **{key: torch.ones(2, 2) for key in more},
    }
    return write_safetensors(folder / "x.safetensors", tensors)


def test_a_file_that_fits_is_supported_and_every_key_is_accounted_for(tmp_path: Path) -> None:
    answer = lorry.is_supported(file_for(tmp_path, 2048), "sdxl")
    assert answer
    assert (answer.made_for, answer.model_is, answer.problem) == ("SDXL", "SDXL", None)
    assert answer.report is not None
    assert (answer.report.applied, answer.report.key_count) == (2, 2)
    assert str(answer).startswith("can be loaded whole\nmade for SDXL, the model is SDXL\n")


def test_a_file_for_another_base_is_not_and_the_answer_says_which(tmp_path: Path) -> None:
    answer = lorry.is_supported(file_for(tmp_path, 2048), "sd15")
    assert not answer
    assert (answer.made_for, answer.model_is) == ("SDXL", "Stable Diffusion 1")
    assert isinstance(answer.problem, lorry.errors.ShapeMismatchError)
    assert answer.report is not None
    assert answer.report.mismatched_keys == 2
    assert "it is for SDXL, and this is Stable Diffusion 1" in str(answer.problem)
    assert str(answer).startswith(
        "cannot be loaded as it is\nmade for SDXL, the model is Stable Diffusion 1\n"
    )


def test_unknown_keys_are_named(tmp_path: Path) -> None:
    answer = lorry.is_supported(file_for(tmp_path, 768, 640, "unet.nowhere.lora_A.weight", "what"), "sd15")
    assert not answer
    assert answer.report is not None
    assert set(answer.report.unknown) == {"unet.nowhere.lora_A.weight", "what"}
    told = answer.as_dict()
    assert (told["supported"], told["applied"], told["key_count"]) == (False, 2, 4)


@pytest.mark.parametrize("content", [b"nonsense", None])
def test_a_file_that_cannot_be_read_is_not_supported(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    answer = lorry.is_supported(path, "sd15")
    assert not answer
    assert isinstance(answer.problem, lorry.errors.FileError)
    assert answer.report is None
    assert answer.as_dict()["supported"] is False


def test_no_weight_is_read(tmp_path: Path) -> None:
    path = file_for(tmp_path, 768)
    content = bytearray(path.read_bytes())
    answer = lorry.is_supported(path, "sd15")
    assert answer.report is not None
    with path.open("r+b") as file:  # the header says there are weights, and there are other numbers now
        file.seek(len(content) - 64)
        file.write(b"\xff" * 64)
    assert str(lorry.is_supported(path, "sd15").report) == str(answer.report)


def test_a_pipeline_is_asked_and_left_as_it_was(tmp_path: Path) -> None:
    pipe: Any = tiny_sd_pipeline()
    before = snapshot(pipe.unet)
    path = file_for(tmp_path, 32, 16)
    assert lorry.is_supported(path, pipe)
    assert lorry.is_supported(path, pipe.unet)
    assert not lorry.is_supported(path, pipe.text_encoder)
    assert not lorry.is_supported(path, tiny_sdxl_pipeline())
    check_same(snapshot(pipe.unet), before)


def test_a_state_dict_can_be_asked_about() -> None:
    tensors = {
        f"unet.{FULL}.lora_A.weight": torch.zeros(2, 32),
        f"unet.{FULL}.lora_B.weight": torch.zeros(16, 2),
    }
    assert lorry.is_supported(tensors, tiny_unet())


def test_a_folder_of_configurations_stands_for_its_pipeline(tmp_path: Path) -> None:
    tiny_sd_pipeline().save_pretrained(tmp_path / "pipe")
    for weights in (tmp_path / "pipe").rglob("*.safetensors"):
        weights.unlink()
    path = file_for(tmp_path, 32, 16)
    answer = lorry.is_supported(path, tmp_path / "pipe")
    assert answer
    assert lorry.is_supported(path, tmp_path / "pipe" / "unet")
    assert not lorry.is_supported(path, tmp_path / "pipe" / "text_encoder")


def test_what_is_no_model_is_an_error_that_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        lorry.errors.StateError, match=r"no base model 'sdxxl'.*Did you mean 'sdxl'\?.*Known: sd15"
    ):
        lorry.is_supported({}, "sdxxl")
    with pytest.raises(lorry.errors.StateError, match="is no pipeline: expected folders such as `unet`"):
        lorry.is_supported({}, tmp_path)
    with pytest.raises(lorry.errors.StateError, match="int has no model that adapters are for"):
        lorry.is_supported({}, 3)


def test_what_is_asked_is_what_loading_says(tmp_path: Path) -> None:
    pipe: Any = lorry.attach(tiny_sd_pipeline())
    path = file_for(tmp_path, 32, 16)
    answer: Support = lorry.is_supported(path, pipe)
    report = pipe.load_lora_weights(path, adapter_name="x")
    assert str(answer.report) == str(report)
