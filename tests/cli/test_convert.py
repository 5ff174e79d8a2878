"""`lorry convert`, and `lorry inspect --model`."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from cli.runs import lorry_says
from lorry.files import read_adapter_file, read_safetensors, write_safetensors

LAYER = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


def sdxl_file(folder: Path, **more: torch.Tensor) -> Path:
    tensors = {
        f"{LAYER}.lora_down.weight": torch.randn(2, 2048),
        f"{LAYER}.lora_up.weight": torch.randn(640, 2),
    }
    return write_safetensors(folder / "x.safetensors", tensors | {f"{LAYER}.{k}": t for k, t in more.items()})


def test_a_file_is_converted_for_the_base_that_its_layers_tell(tmp_path: Path) -> None:
    source, out = sdxl_file(tmp_path), tmp_path / "out.safetensors"
    result = lorry_says("convert", source, out, "--to", "kohya")
    assert result.exit_code == 0, result.stderr
    assert "1 LoRA for SDXL" in result.stdout
    assert "kohya, 2 tensors" in result.stdout
    stem = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    assert read_safetensors(out).tensors.keys() == {f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"}
    back = lorry_says("convert", out, tmp_path / "peft", "--to", "peft")
    assert back.exit_code == 0, back.stderr
    assert set(read_adapter_file(tmp_path / "peft").tensors) == {
        f"unet.base_model.model.{LAYER.removeprefix('unet.')}.lora_{side}.weight" for side in "AB"
    }


def test_the_shipped_base_may_be_named(shipped: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    result = lorry_says("convert", "ink", out, "--to", "comfyui", "--base", "shipped")
    assert result.exit_code == 0, result.output
    assert any("input_blocks" in key or "output_blocks" in key for key in read_safetensors(out).tensors)


def test_what_cannot_be_carried_is_an_error_and_with_approximate_a_printed_one(tmp_path: Path) -> None:
    diff = write_safetensors(tmp_path / "x.safetensors", {f"{LAYER}.diff": torch.randn(640, 2048)})
    out = tmp_path / "out.safetensors"
    idle = lorry_says("convert", diff, out, "--to", "lycoris", "--rank", "4")
    assert idle.exit_code == 1
    assert "A rank of 4 is that of LoRAs that approximate: ask for them (`--approximate`)" in idle.stderr
    refused = lorry_says("convert", diff, out, "--to", "diffusers")
    assert refused.exit_code == 1
    assert f"{LAYER} (full)" in refused.stderr
    assert not out.exists()
    done = lorry_says("convert", diff, out, "--to", "diffusers", "--approximate", "--rank", "4", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["approximations"][0]["became"] == "LoRA of rank 4"
    assert 0.9 < told["error"]["total"] < 1
    assert read_safetensors(out).tensors[f"{LAYER}.lora_A.weight"].shape == (4, 2048)
    again = lorry_says("convert", diff, out, "--to", "diffusers", "--approximate")
    assert again.exit_code == 1
    assert "is there already" in again.stderr


def test_inspect_tells_what_loading_would_do(tmp_path: Path) -> None:
    fits = lorry_says("inspect", sdxl_file(tmp_path), "--model", "sdxl")
    assert fits.exit_code == 0, fits.stderr
    assert "sdxl: can be loaded whole\nmade for SDXL, the model is SDXL" in fits.stdout
    assert "2 of 2 keys applied to 1 targets" in fits.stdout
    other = lorry_says("inspect", sdxl_file(tmp_path), "--model", "sd15", "--json")
    assert other.exit_code == 1
    support = json.loads(other.stdout)["support"]
    assert (support["supported"], support["made_for"], support["model_is"]) == (
        False,
        "SDXL",
        "Stable Diffusion 1",
    )
    assert "the delta is (640, 2048), the weight is (640, 768)" in support["mismatched"][0]


def test_the_help_names_every_dialect_that_is_written() -> None:
    from lorry.cli.converting import WRITTEN
    from lorry.dialects import DIALECTS

    assert set(WRITTEN) == {dialect.name for dialect in DIALECTS if dialect.is_written}
