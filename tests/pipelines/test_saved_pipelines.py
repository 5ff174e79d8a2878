"""What `save_pretrained` writes of a pipeline that carries adapters, and pipelines that share a text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pipelines import oracle
from pipelines.conftest import Files


def written(pipe: Any, folder: Path) -> dict[str, bytes]:
    pipe.save_pretrained(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


def test_with_adapters_active_it_is_the_clean_base_byte_for_byte_and_fused_the_fused_weights(
    files: Files, tmp_path: Path
) -> None:
    pipe: Any = oracle.ours("sd")
    clean = written(pipe, tmp_path / "clean")
    pipe.load_lora_weights(files.get("sd"), adapter_name="toy")
    assert written(pipe, tmp_path / "active") == clean
    unfused = oracle.denoised(pipe)
    pipe.fuse_lora()
    fused = written(pipe, tmp_path / "fused")
    name = "unet/diffusion_pytorch_model.safetensors"
    assert fused[name] != clean[name]
    tensors = load_file(tmp_path / "fused" / name)
    assert tensors.keys() == load_file(tmp_path / "clean" / name).keys()
    other: Any = oracle.ours("sd")
    other.unet.load_state_dict(tensors)
    oracle.check_close({"denoiser": oracle.denoised(other)}, {"denoiser": unfused})
    pipe.unfuse_lora()
    assert written(pipe, tmp_path / "unfused") == clean


def test_pipelines_that_share_a_text_encoder_share_what_it_carries(files: Files) -> None:
    one: Any = oracle.ours("sd")
    parts = oracle.copied_parts("sd") | {"text_encoder": one.text_encoder}
    other = oracle.made(type(one), parts)
    bare = oracle.encoded(one)["text_encoder"]
    one.load_lora_weights(files.get("sd"), adapter_name="toy")
    assert other.get_list_adapters() == {"text_encoder": ["toy"]}
    other.load_lora_weights(files.get("sd", "b"), adapter_name="pixel")
    assert one.get_active_adapters() == [
        "toy",
        "pixel",
    ]  # the UNet's own, and the last that came to the encoder
    other.unload_lora_weights()
    assert one.get_list_adapters() == {"unet": ["toy"]}
    assert torch.equal(oracle.encoded(one)["text_encoder"], bare)
    one.unload_lora_weights()
    assert type(one.text_encoder) is type(other.text_encoder)
    assert not hasattr(one.unet, "lorry")
