"""`inspect_file`: what a report says, and that it reads no weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorry.errors import AdapterNotFoundError, BrokenFileError, UnknownDialectError
from lorry.files import write_safetensors
from lorry.workflows import inspect_file

ATTENTION = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
CONVOLUTION = "lora_unet_down_blocks_0_resnets_0_conv1"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def kohya_tensors() -> dict[str, Tensor]:
    """A linear layer of rank 4, a convolution of rank 2, and a text layer without alpha of rank 3."""
    return {
        f"{ATTENTION}.lora_down.weight": torch.randn(4, 16).half(),
        f"{ATTENTION}.lora_up.weight": torch.randn(16, 4).half(),
        f"{ATTENTION}.alpha": torch.tensor(2.0).half(),
        f"{CONVOLUTION}.lora_down.weight": torch.randn(2, 8, 3, 3).half(),
        f"{CONVOLUTION}.lora_up.weight": torch.randn(8, 2, 1, 1).half(),
        f"{CONVOLUTION}.alpha": torch.tensor(2.0).half(),
        f"{TEXT}.lora_down.weight": torch.randn(3, 32),
        f"{TEXT}.lora_up.weight": torch.randn(40, 3),
    }


@pytest.fixture
def kohya_file(tmp_path: Path) -> Path:
    metadata = {"ss_output_name": "toy", "ss_tag_frequency": "x" * 500}
    return write_safetensors(tmp_path / "toy.safetensors", kohya_tensors(), metadata)


def test_the_report_counts_targets_ranks_alphas_and_scales_of_each_component(kohya_file: Path) -> None:
    report = inspect_file(kohya_file)
    assert (report.dialect, report.families, report.targets, report.problem) == ("kohya", ("LoRA",), 3, None)
    parts = {part.component: part for part in report.parts}
    text = parts.pop("text_encoder")
    (unet,) = parts.values()
    assert (unet.targets, unet.keys) == (2, 6)
    assert unet.kinds == {"attention": 1, "convolution": 1}
    assert (unet.ranks, unet.alphas, unet.scales) == ({2: 1, 4: 1}, {2.0: 2}, {0.5: 1, 1.0: 1})
    assert unet.scale_sources == {"alpha tensor": 2}
    assert (text.ranks, text.alphas, text.scales, text.scale_sources) == (
        {3: 1},
        {3.0: 1},
        {1.0: 1},
        {"rank": 1},
    )


def test_the_report_counts_dtypes_and_bytes(kohya_file: Path) -> None:
    report = inspect_file(kohya_file)
    assert report.tensors == 8
    assert report.dtypes == {"float16": 6, "float32": 2}
    assert report.nbytes == sum(tensor.nbytes for tensor in kohya_tensors().values())
    assert report.size == kohya_file.stat().st_size > report.nbytes


def test_the_print_shortens_long_metadata_and_the_json_does_not(kohya_file: Path) -> None:
    report = inspect_file(kohya_file)
    assert "x" * 100 not in str(report)
    assert "(500 characters)" in str(report)
    assert report.as_dict()["metadata"]["ss_tag_frequency"] == "x" * 500


def test_numbered_metadata_of_one_value_is_one_line(tmp_path: Path) -> None:
    metadata = {f"unet:{number}:rank": "4" for number in range(9)} | {
        "unet:9:rank": "8",
        "a1": "x",
        "a2": "x",
    }
    lines = str(
        inspect_file(write_safetensors(tmp_path / "x.safetensors", kohya_tensors(), metadata))
    ).splitlines()
    shown = [line.split() for line in lines[lines.index("  metadata:") + 1 :]]
    assert shown == [["a1", "x"], ["a2", "x"], ["unet:*:rank", "4", "(9", "keys)"], ["unet:9:rank", "8"]]


def test_the_print_says_what_the_file_is(kohya_file: Path) -> None:
    text = str(inspect_file(kohya_file))
    for said in (
        "kohya",
        "LoRA",
        "rank 2 (1), 4 (1)",
        "alpha 2",
        "1 attention, 1 convolution",
        "6 float16, 2 float32",
        "toy",
    ):
        assert said in text


def test_the_report_is_json(kohya_file: Path) -> None:
    found = json.loads(json.dumps(inspect_file(kohya_file).as_dict()))
    ranks = {part["component"]: part["ranks"] for part in found["parts"]}
    assert ranks["text_encoder"] == {"3": 1}
    assert (found["targets"], found["families"], found["problem"]) == (3, ["LoRA"], None)


def test_no_weight_is_read(tmp_path: Path) -> None:
    """Its data is a hole on the disk of 320 GB, which nobody reads or copies within a test."""
    shape, size = [200_000, 200_000], 4 * 200_000**2
    names = [f"unet.mid_block.resnets.0.conv1.lora_{side}.weight" for side in "AB"]
    header = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [size * number, size * (number + 1)]}
        for number, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    path = tmp_path / "vast.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 2 * size)
    (part,) = inspect_file(path).parts
    assert part.ranks == {200_000: 1}
    assert part.nbytes == 2 * size


def test_a_file_in_no_dialect_still_tells_its_keys_dtypes_and_metadata(tmp_path: Path) -> None:
    path = write_safetensors(
        tmp_path / "odd.safetensors", {"what.is.this": torch.zeros(3, 5)}, {"author": "somebody"}
    )
    report = inspect_file(path)
    assert isinstance(report.problem, UnknownDialectError)
    assert (report.dialect, report.parts, report.unknown) == (None, (), ("what.is.this",))
    for said in ("what.is.this", "1 float32", "somebody"):
        assert said in str(report)
    assert "no dialect" in json.loads(json.dumps(report.as_dict()))["problem"]


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFoundError, match="gone"):
        inspect_file(tmp_path / "gone.safetensors")


def test_a_broken_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(BrokenFileError, match="web page"):
        inspect_file(path)


def test_tokens_that_a_file_brings_along_are_listed(tmp_path: Path) -> None:
    tensors = {
        "lora_unet_a.lora_down.weight": torch.ones(2, 6),
        "lora_unet_a.lora_up.weight": torch.ones(8, 2),
        "bundle_emb.zuzu.clip_g": torch.ones(3, 8),
    }
    report = inspect_file(write_safetensors(tmp_path / "x.safetensors", tensors))
    assert report.tokens == (("zuzu", "text_encoder_2", 3),)
    assert "text_encoder_2: the token 'zuzu' of 3 vectors" in str(report)
    assert report.as_dict()["tokens"] == (("zuzu", "text_encoder_2", 3),)
