"""`lorry inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from cli.runs import lorry_says
from lorry.files import weights_hash, write_safetensors


def test_a_shipped_adapter_is_inspected_by_its_name(shipped: Path) -> None:
    result = lorry_says("inspect", "words")
    assert result.exit_code == 0
    for said in ("LoRA", "unet: ", "text_encoder: ", "rank 2", "modelspec.trigger_phrase  abra, dabra"):
        assert said in result.stdout
    assert result.stderr == ""


def test_json_is_all_that_is_printed(shipped: Path) -> None:
    result = lorry_says("inspect", "ink", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["metadata"] == {"modelspec.title": "Ink"}


def test_long_lines_are_not_broken(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / f"{'long' * 40}.safetensors", {"x": torch.zeros(1)})
    assert str(path) in lorry_says("inspect", path).stdout


def test_what_looks_like_markup_or_emoji_is_text(tmp_path: Path) -> None:
    path = write_safetensors(
        tmp_path / "x.safetensors", {"x": torch.zeros(1)}, {"unet:100:rank": "[red]4[/red] :cat:"}
    )
    assert "unet:100:rank  [red]4[/red] :cat:" in lorry_says("inspect", path).stdout


def test_a_file_that_lorry_cannot_apply_is_told_about_and_exits_with_1(tmp_path: Path) -> None:
    path = write_safetensors(
        tmp_path / "odd.safetensors", {"what.is.this": torch.zeros(3)}, {"author": "somebody"}
    )
    result = lorry_says("inspect", path)
    assert result.exit_code == 1
    assert "1 float32" in result.stdout
    assert "somebody" in result.stdout
    assert result.stderr.startswith("error: ")
    assert "no dialect" in result.stderr


def test_the_hashes_of_such_a_file_are_given_all_the_same(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", {"strange": torch.ones(2)})
    result = lorry_says("inspect", path, "--hashes", "--weights")
    assert result.exit_code == 1
    assert weights_hash(path)[:12] in result.stdout


def test_json_of_such_a_file_has_the_problem_and_exits_with_1(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "odd.safetensors", {"what.is.this": torch.zeros(3)})
    result = lorry_says("inspect", path, "--json")
    assert result.exit_code == 1
    assert "no dialect" in json.loads(result.stdout)["problem"]
    assert result.stderr == ""


def test_a_broken_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    result = lorry_says("inspect", tmp_path / "x.safetensors")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stdout == ""


def test_what_becomes_of_the_keys_on_a_model_they_do_not_fit_is_told_once(shipped: Path) -> None:
    result = lorry_says("inspect", "ink", "--model", "flux")
    assert result.exit_code == 1
    assert result.stdout.count("0 of") == 1
    assert "does not fit" in result.stderr
    assert "keys applied" not in result.stderr


def test_the_shipped_base_is_a_model_to_look_at_too(shipped: Path) -> None:
    result = lorry_says("inspect", "ink", "--model", "shipped")
    assert result.exit_code == 0, result.output
    assert "shipped: can be loaded whole" in result.stdout
