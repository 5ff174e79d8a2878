"""The architectures that people use, at full size. Their weights are never written, so they take no real memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import lorry
from architectures import SD15, SDXL
from lorry.binding import weight_shape
from lorry.binding.original_names import sgm_names

CLIP_L = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
CLIP_G = CLIPTextConfig(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    projection_dim=1280,
)


class Parts(lorry.StableDiffusionXLLoraLoaderMixin):
    """As much of a pipeline as the loader looks at."""

    def __init__(
        self, unet: nn.Module, text_encoder: nn.Module, text_encoder_2: nn.Module | None = None
    ) -> None:
        self.unet, self.text_encoder = unet, text_encoder
        if text_encoder_2 is not None:
            self.text_encoder_2 = text_encoder_2


def unwritten(build: type[nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """Build a model in bfloat16 whose memory is reserved and not touched."""
    with torch.device("meta"):
        model = build(*args, **kwargs)
    return model.to(torch.bfloat16).to_empty(device="cpu").eval()


@pytest.fixture(scope="module")
def sd15() -> Parts:
    return Parts(unwritten(UNet2DConditionModel, **SD15), unwritten(CLIPTextModel, CLIP_L))


def sdxl_kohya_file(unet: nn.Module, encoders: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Make a kohya SDXL adapter of rank 2 with original block names, on every linear layer of blocks and encoders."""
    tensors: dict[str, Tensor] = {}

    def add(name: str, module: nn.Module) -> None:
        out, width = weight_shape(module) or (0, 0)
        tensors[f"{name}.lora_down.weight"] = torch.full((2, width), 0.01, dtype=torch.float16)
        tensors[f"{name}.lora_up.weight"] = torch.full((out, 2), 0.01, dtype=torch.float16)
        tensors[f"{name}.alpha"] = torch.tensor(1.0, dtype=torch.float16)

    modules = dict(unet.named_modules())
    for original, path in sgm_names(modules).items():
        if isinstance(modules[path], nn.Linear) and ".attentions." in path:
            add("lora_unet_" + original.replace(".", "_"), modules[path])
    for prefix, encoder in encoders.items():
        for path, module in encoder.named_modules():
            if isinstance(module, nn.Linear) and ".layers." in path:
                old_path = path if path.startswith("text_model.") else f"text_model.{path}"
                add(f"{prefix}_{old_path.replace('.', '_')}", module)
    return tensors


def test_the_sample_file_loads_into_stable_diffusion_1_5_whole(sd15: Parts, shared_dir: Path) -> None:
    sample = shared_dir / "samples" / "analog_svd_rank4.safetensors"
    report = sd15.load_lora_weights(sample, adapter_name="analog")
    with safe_open(sample, "pt") as file:
        keys = list(file.keys())
        first_up, first_down = file.get_tensor("unet:0:up"), file.get_tensor("unet:0:down")
    assert report.key_count == len(keys)
    assert report.applied + len(report.ignored) == len(keys)
    assert {part.component: part.targets for part in report.components} == {"unet": 144, "text_encoder": 48}
    first = sd15.unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
    assert torch.equal(first.get_buffer("lorry_down"), first_down.to(torch.bfloat16))
    assert torch.equal(first.get_buffer("lorry_up"), first_up.to(torch.bfloat16))
    sd15.unload_lora_weights()
    assert not any(".lorry" in name for name, _ in sd15.unet.named_buffers())


def test_an_adapter_as_wide_as_sdxl_in_kohyas_names_lands_on_every_layer_it_names() -> None:
    pipe = Parts(
        unwritten(UNet2DConditionModel, **SDXL),
        unwritten(CLIPTextModel, CLIP_L),
        unwritten(CLIPTextModelWithProjection, CLIP_G),
    )
    tensors = sdxl_kohya_file(pipe.unet, {"lora_te1": pipe.text_encoder, "lora_te2": pipe.text_encoder_2})
    report = pipe.load_lora_weights(tensors, adapter_name="wide")
    assert report.applied == len(tensors)
    assert {part.component: part.targets for part in report.components} == {
        "unet": 722,
        "text_encoder": 72,
        "text_encoder_2": 192,
    }
    assert {part.scales for part in report.components} == {(0.5,)}
    layer = pipe.unet.get_submodule("up_blocks.0.attentions.2.transformer_blocks.9.ff.net.2")
    assert layer.lorry_down is not None
    with pytest.raises(lorry.errors.BindingError, match="another base model"):
        Parts(unwritten(UNet2DConditionModel, **SD15), unwritten(CLIPTextModel, CLIP_L)).load_lora_weights(
            tensors
        )
