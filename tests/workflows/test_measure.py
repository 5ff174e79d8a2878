"""What weights and metadata say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lorry.files import write_safetensors
from lorry.workflows import inspect_file
from lorry.workflows.measure import effective_rank, measure_file
from lorry.workflows.training_facts import training_facts
from workflows.files import full_deltas, kohya_file, rand


def test_layers_are_measured_as_their_full_deltas(tmp_path: Path) -> None:
    path = kohya_file(tmp_path / "a.safetensors")
    report = measure_file(path)
    exact = {name.rpartition("_")[2]: delta for name, delta in full_deltas(path).items()}
    assert len(report.layers) == 4
    for layer in report.layers:
        delta = exact[layer.name.rpartition("_")[2]]
        values = torch.linalg.svdvals(delta.flatten(1))[:4]
        assert layer.spectrum == pytest.approx(values.tolist(), rel=1e-5)
        assert layer.norm == pytest.approx(float(delta.norm()), rel=1e-5)
        assert layer.strength == pytest.approx(float(delta.square().mean().sqrt()), rel=1e-5)
        kept = (values.square().cumsum(0) / values.square().sum()).tolist()
        assert layer.energy == pytest.approx(kept, rel=1e-5)
        assert layer.ranks == tuple(sum(share < goal for share in kept) + 1 for goal in (0.5, 0.9, 0.99))
        assert (layer.rank, layer.alpha) in ((4, 2.0), (4, 1.0))
    assert sum(block.share for block in report.blocks) == pytest.approx(1)
    assert [block.name for block in report.blocks] == ["down_blocks.0", "text_encoder.layers.0"]


def test_the_effective_rank_counts_directions() -> None:
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0, 2.0])) == pytest.approx(4)
    assert effective_rank(torch.tensor([2.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0


def test_what_has_no_matrix_is_counted(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", {"lora_unet_conv_norm_out.w_norm": rand(8, seed=1)})
    report = measure_file(path)
    assert (report.layers, report.left_out) == ((), 1)
    assert "no layer has a matrix" in str(report)


def test_training_facts_are_told_from_any_trainers_words(tmp_path: Path) -> None:
    tags = {"10_cat": {"cat": 5, "sitting ": 2}, "1_dog": {"dog": 3, "cat": 1, "bad": None}}
    text = {
        "ss_sd_model_name": "sdxl.safetensors",
        "ss_learning_rate": "None",
        "ss_unet_lr": "0.0001",
        "ss_tag_frequency": json.dumps(tags),
        "modelspec.trigger_phrase": "abra",
    }
    report = inspect_file(kohya_file(tmp_path / "a.safetensors", metadata=text))
    facts = report.training
    assert facts.settings == {"base model": "sdxl.safetensors", "learning rate, unet": "0.0001"}
    assert (facts.trigger, dict(facts.tags)) == ("abra", {"cat": 6, "dog": 3, "sitting": 2})
    assert "tags                  cat (6), dog (3), sitting (2)" in str(report)
    assert report.as_dict()["training"]["trigger"] == "abra"


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 3}', "[" * 100_000])
def test_broken_tag_lists_are_left_out(text: str) -> None:
    assert training_facts({"ss_tag_frequency": text}).is_empty
