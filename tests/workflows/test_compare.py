"""Two files side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorry.errors import StateError
from lorry.files import read_safetensors, write_safetensors
from lorry.workflows.blocks import in_order
from lorry.workflows.compare import compare_files
from workflows.files import WIDE, diffusers_file, full_deltas, kohya_file, lora


def test_layers_blocks_and_the_whole_have_the_cosines_of_the_full_deltas(tmp_path: Path) -> None:
    one, two = kohya_file(tmp_path / "a.safetensors"), diffusers_file(tmp_path / "b.safetensors")
    report = compare_files(one, two)
    a, b = full_deltas(one), full_deltas(two)
    both = [name for name in a if name in b]
    assert (len(report.layers), report.only, report.left_out) == (3, (1, 0), 0)
    assert [block.name for block in report.blocks] == ["down_blocks.0", "text_encoder.layers.0"]

    def cosine(names: list[str]) -> float:
        inner = sum(float((a[n] * b[n]).sum()) for n in names)
        return (
            inner
            / (sum(float((a[n] ** 2).sum()) for n in names) * sum(float((b[n] ** 2).sum()) for n in names))
            ** 0.5
        )

    assert report.whole is not None
    assert report.whole.cosine == pytest.approx(cosine(both), abs=1e-6)
    assert report.blocks[0].cosine == pytest.approx(cosine([n for n in both if "down" in n]), abs=1e-6)
    square = sum(float((a[n] + b[n]).square().sum()) for n in both)
    apart = sum(float(a[n].square().sum() + b[n].square().sum()) for n in both)
    assert report.whole.gain == pytest.approx((square / apart) ** 0.5, abs=1e-6)


def changed(path: Path, to: Path, factor: float) -> Path:
    """The same file with every `up` times a factor."""
    tensors = {
        k: t * factor if "up" in k.split(".")[1] else t for k, t in read_safetensors(path).tensors.items()
    }
    return write_safetensors(to, tensors)


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "reinforce"), (-0.5, "fight")])
def test_the_same_twice_reinforces_and_its_opposite_fights(
    tmp_path: Path, factor: float, verdict: str
) -> None:
    one = kohya_file(tmp_path / "a.safetensors")
    report = compare_files(one, changed(one, tmp_path / "b.safetensors", factor))
    assert report.whole is not None
    assert report.whole.verdict == verdict
    assert f"in all: {verdict}" in str(report)
    assert {block.verdict for block in report.blocks} == {verdict}


def test_shared_features_in_another_direction_and_nothing_shared(tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    up, down = f"{name}.lora_up.weight", f"{name}.lora_down.weight"
    tensors = lora(name, WIDE, 4, 1)
    tensors = {up: torch.linalg.qr(tensors[up])[0], down: torch.linalg.qr(tensors[down].T)[0].T.contiguous()}
    one = write_safetensors(tmp_path / "a.safetensors", tensors)
    # A quarter turn within the rank keeps both spaces, and gives a delta at a right angle.
    turn = torch.tensor([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1], [0, 0, -1, 0]])
    two = write_safetensors(tmp_path / "b.safetensors", {**tensors, up: tensors[up] @ turn})
    shared = compare_files(one, two).whole
    assert shared is not None
    assert (shared.cosine, shared.shared) == pytest.approx((0, 1), abs=1e-5)
    assert shared.verdict == "share"
    other = write_safetensors(
        tmp_path / "c.safetensors", lora(name.replace("mid_block", "down_blocks_0"), WIDE, 4, 9)
    )
    report = compare_files(one, other)
    assert report.whole is None
    assert "no layer in common" in str(report)


def test_adapters_for_different_models_are_refused(tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    one = write_safetensors(tmp_path / "a.safetensors", lora(name, WIDE, 4, 1))
    two = write_safetensors(tmp_path / "b.safetensors", lora(name, (24, 44), 4, 1))
    with pytest.raises(StateError, match="different base models"):
        compare_files(one, two)


def test_blocks_are_listed_as_a_model_runs_them() -> None:
    names = [
        "text_encoder.layers.10",
        "text_encoder.layers.2",
        "up_blocks.0",
        "mid_block",
        "down_blocks.1",
        "conv_in",
    ]
    assert in_order(names) == [*reversed(names[2:]), "text_encoder.layers.2", "text_encoder.layers.10"]


def test_a_layer_of_which_one_file_has_the_bias_alone_is_not_compared(tmp_path: Path) -> None:
    one = kohya_file(tmp_path / "a.safetensors")
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    two = write_safetensors(tmp_path / "b.safetensors", {f"{name}.diff_b": torch.ones(WIDE[0])})
    for report in (compare_files(one, two), compare_files(two, one)):
        assert not report.layers
