"""Flux's control LoRAs, in the names of their publisher, on the pipeline that takes the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxControlPipeline
from PIL import Image
from torch import Tensor

from models import tiny_flux_pipeline
from pipelines import oracle

PAIRS = {
    "img_in": (32, 32),
    "double_blocks.0.img_attn.qkv": (96, 32),
    "double_blocks.0.img_mlp.0": (128, 32),
    "single_blocks.0.linear1": (224, 32),
    "final_layer.adaLN_modulation.1": (64, 32),
}


def control_file() -> dict[str, Tensor]:
    """A file as the published ones: pairs with a bias, scales of norms, and `img_in` for twice the channels."""
    generator = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    tensors = {}
    for name, (out, width) in PAIRS.items():
        pair = {"lora_A.weight": noise(4, width), "lora_B.weight": noise(out, 4), "lora_B.bias": noise(out)}
        tensors |= {f"{name}.{end}": tensor for end, tensor in pair.items()}
    return tensors | {f"double_blocks.0.img_attn.norm.{q}_norm.scale": noise(16) for q in ("query", "key")}


def picture(pipe: Any) -> Any:
    seen = Image.new("RGB", (16, 16), (200, 30, 40))
    options = {
        "height": 16,
        "width": 16,
        "num_inference_steps": 2,
        "output_type": "np",
        "max_sequence_length": 8,
    }
    return pipe(
        prompt="cat", control_image=seen, generator=torch.Generator().manual_seed(0), **options
    ).images


def test_a_control_lora_draws_fused_and_unfused_and_leaves_no_trace() -> None:
    pipe = tiny_flux_pipeline(cls=oracle.lorry_class(FluxControlPipeline))
    pipe.set_progress_bar_config(disable=True)
    config = pipe.transformer.config
    before = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}
    file = control_file()
    report = pipe.load_lora_weights(file, adapter_name="control")
    assert (report.applied, report.targets) == (len(file), 12)
    drawn = picture(pipe)
    pipe.fuse_lora()
    np.testing.assert_allclose(picture(pipe), drawn, atol=1e-5)
    pipe.unfuse_lora()
    assert np.array_equal(picture(pipe), drawn)
    pipe.unload_lora_weights()
    assert pipe.transformer.config is config
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.transformer.state_dict().items())


@pytest.mark.parametrize("features", [8, 32], ids=["regular file in a wider model", "control file"])
def test_a_first_layer_with_other_inputs_computes_what_diffusers_makes_of_it(features: int) -> None:
    tensors = {
        "transformer.x_embedder.lora_A.weight": torch.randn(4, features),
        "transformer.x_embedder.lora_B.weight": torch.randn(32, 4),
    }
    parts, cls = oracle.copied_parts("flux"), type(oracle.base("flux"))
    x = torch.randn(2, max(features, 16))
    mine = oracle.made(oracle.lorry_class(cls), parts)
    mine.load_lora_weights(dict(tensors))
    got = mine.transformer.x_embedder(x).detach()
    assert mine.transformer.config.in_channels == x.shape[1]
    mine.unload_lora_weights()
    assert mine.transformer.config.in_channels == 16
    theirs = oracle.made(cls, parts)
    theirs.load_lora_weights(dict(tensors))
    assert theirs.transformer.config.in_channels == x.shape[1]
    torch.testing.assert_close(got, theirs.transformer.x_embedder(x).detach())
