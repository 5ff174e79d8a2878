"""Keys and shapes of real adapter files, on the models they were made for: every key lands, nothing is left over."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, Qwen3Config, Qwen3Model, T5Config, T5EncoderModel

from architectures import FLUX_DEV
from lorry.binding import Plan, bind
from lorry.dialects import read_adapter
from lorry.files import TensorFile

FILES = {
    "flux_lora_kohya_format": ("flux", 494),
    "flux_lora_aitoolkit_format": ("flux", 418),
    "flux_dora_onetrainer_format": ("flux", 506),
    "flux_lora_xlabs_format": ("flux", 24),
    "flux_control_lora_format": ("flux", 656),
    "krea2_lora_kohya_format": ("krea 2", 40),
    "qwen_image_lora_diffusers_format": ("qwen image", 3),
    "anima_lora_kohya_with_te_format": ("anima", 9),
}
"""{file: (pipeline, modules that it changes)}."""

CLIP_L = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
T5_XXL = T5Config(d_model=4096, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
QWEN = Qwen3Config(
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=2,
    head_dim=64,
    num_attention_heads=16,
    num_key_value_heads=16,
    vocab_size=8,
)
"""The shapes of Anima's header, which are not those of the published Qwen3."""
ANIMA = {"num_attention_heads": 16, "text_embed_dim": 2048, "extra_pos_embed_type": None, "num_layers": 2}
"""The same of the header's transformer."""


@functools.cache
def pipeline(name: str) -> dict[str, nn.Module]:
    with torch.device("meta"):
        if name == "flux":
            clip, t5 = CLIPTextModel(CLIP_L), T5EncoderModel(T5_XXL)
            transformer = diffusers.FluxTransformer2DModel(**FLUX_DEV)
            return {"transformer": transformer, "text_encoder": clip, "text_encoder_2": t5}
        if name == "anima":
            return {
                "transformer": diffusers.CosmosTransformer3DModel(**ANIMA),
                "text_encoder": Qwen3Model(QWEN),
            }
        if name == "krea 2":
            return {"transformer": diffusers.Krea2Transformer2DModel()}
        return {"transformer": diffusers.QwenImageTransformer2DModel(num_layers=2)}


def tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """A tensor of every shape in a header that takes the memory of one number; alphas are 1."""
    keys: dict[str, list[int]] = json.loads((folder / "headers" / f"{name}.json").read_text("utf-8"))["keys"]
    return {key: torch.ones(()).expand(shape) for key, shape in keys.items()}


def plan_of(name: str, given: dict[str, Tensor]) -> Plan:
    return bind(read_adapter(TensorFile(given, {}, name, None)), pipeline(FILES[name][0]))


@pytest.mark.parametrize("name", FILES)
def test_every_key_of_a_real_file_lands_on_the_model_it_was_made_for(name: str, shared_dir: Path) -> None:
    given = tensors(shared_dir, name)
    plan = plan_of(name, given)
    assert plan.report.applied == plan.report.key_count == len(given)
    assert plan.report.targets == FILES[name][1]
    assert not any(part.without_alpha for part in plan.report.components)
