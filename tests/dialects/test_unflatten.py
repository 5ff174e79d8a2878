"""Flattened paths get their dots back, on every module of the models whose names are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from torch import nn

from lorry.binding.targets import carriers
from lorry.dialects import unflatten
from lorry.dialects._paths import connectors_name, connectors_path
from lorry.dialects._unflatten import SEGMENTS
from lorry.errors import FormatError


def sd1() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(cross_attention_dim=768)


def sdxl() -> nn.Module:
    from diffusers import UNet2DConditionModel

    config: dict[str, Any] = {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    return UNet2DConditionModel(**config)


def sd3() -> nn.Module:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(num_layers=2, dual_attention_layers=(0,), qk_norm="rms_norm")


def flux() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)


def clip() -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(CLIPTextConfig(num_hidden_layers=2))


def t5() -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(num_layers=2, feed_forward_proj="gated-gelu"))


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaModel

    return LlamaModel(LlamaConfig(num_hidden_layers=2))


def ltx2_connectors() -> nn.Module:
    return LTX2TextConnectors(video_gated_attn=True, audio_gated_attn=True)


def ltx23_connectors() -> nn.Module:
    return LTX2TextConnectors(per_modality_projections=True)


MODELS: list[Callable[[], nn.Module]] = [
    sd1,
    sdxl,
    sd3,
    flux,
    clip,
    t5,
    llama,
    ltx2_connectors,
    ltx23_connectors,
]


@pytest.mark.parametrize("make", MODELS)
def test_every_module_path_comes_back(make: Callable[[], nn.Module]) -> None:
    with torch.device("meta"):
        paths = [path for path, _ in make().named_modules() if path]
    assert len(paths) > 20
    assert [unflatten(path.replace(".", "_")) for path in paths] == paths


def test_every_word_of_the_vocabulary_is_of_some_model() -> None:
    with torch.device("meta"):
        used = {
            segment
            for model in (make() for make in MODELS)
            for path in (*dict(model.named_modules()), *carriers(model))
            for segment in path.split(".")
        }
    assert used >= SEGMENTS


def test_text_encoder_keys_with_the_level_that_transformers_dropped_come_back() -> None:
    path = "text_model.encoder.layers.11.self_attn.out_proj"
    assert unflatten(path.replace(".", "_")) == path


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(FormatError, match="An empty name"):
        unflatten("")


@pytest.mark.parametrize("make", [ltx2_connectors, ltx23_connectors])
def test_what_a_checkpoint_of_ltx_2_calls_a_layer_means_that_layer(make: Callable[[], nn.Module]) -> None:
    with torch.device("meta"):
        paths = [path for path in carriers(make()) if "." in path or "proj" in path]
    names = {connectors_name(path): path for path in paths}
    assert len(names) == len(paths)
    for name, path in names.items():
        assert name != path
        assert connectors_path(name) == path
        assert connectors_path(name.replace(".", "_")) == path.replace(".", "_")
        flat = connectors_name(path.replace(".", "_"))
        assert flat.replace(".", "_") == name.replace(".", "_")
