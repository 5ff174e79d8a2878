"""Kinds of targets, on the module names of the real architectures."""

from __future__ import annotations

from collections import Counter

import pytest
from torch import nn

from lorry.binding.kinds import kind_of
from lorry.names import Target
from models import (
    carriers,
    tiny_flux_transformer,
    tiny_sd3_transformer,
    tiny_sdxl_unet,
    tiny_text_encoder,
    tiny_unet,
)

MODELS = {
    "unet": tiny_unet,
    "sdxl": tiny_sdxl_unet,
    "sd3": tiny_sd3_transformer,
    "flux": tiny_flux_transformer,
    "text": tiny_text_encoder,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("flat", [False, True])
def test_every_layer_of_a_real_architecture_has_a_kind(name: str, flat: bool) -> None:
    paths = carriers(MODELS[name]())
    kinds = {path: kind_of(Target("x", path.replace(".", "_") if flat else path, flat)) for path in paths}
    assert [path for path, kind in kinds.items() if kind == "other"] == []


@pytest.mark.parametrize("name", MODELS)
def test_flattening_a_path_does_not_change_its_kind(name: str) -> None:
    for path in carriers(MODELS[name]()):
        assert kind_of(Target("x", path)) == kind_of(Target("x", path.replace(".", "_"), flat=True)), path


@pytest.mark.parametrize("name", ["unet", "sdxl"])
def test_the_convolutions_of_a_unet_are_its_kernels_of_three_and_its_shortcuts(name: str) -> None:
    for path, module in carriers(MODELS[name]()).items():
        kernel = isinstance(module, nn.Conv2d) and (module.kernel_size != (1, 1) or "shortcut" in path)
        assert (kind_of(Target("unet", path)) == "convolution") == kernel, path


def test_a_transformer_block_has_eight_attention_and_two_feed_forward_layers() -> None:
    paths = [
        path
        for path in carriers(tiny_unet())
        if path.startswith("mid_block.attentions.0.transformer_blocks.0")
    ]
    assert Counter(kind_of(Target("unet", path)) for path in paths) == {"attention": 8, "feed-forward": 2}


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("text_model.encoder.layers.3.mlp.fc1", "feed-forward"),
        ("text_model.encoder.layers.3.self_attn.q_proj", "attention"),
        ("lora_unknown_thing", "other"),
        ("input_blocks.4.0.in_layers.2", "convolution"),
        ("input_blocks_4_0_emb_layers_1", "time"),
        ("input_blocks_3_0_op", "convolution"),
        ("time_embed_0", "time"),
        ("blocks.0.self_attn.q", "attention"),
        ("blocks_0_cross_attn_k_img", "attention"),
        ("blocks.0.self_attn.norm_q", "other"),
        ("blocks.0.ffn.0", "feed-forward"),
        ("blocks.0.ffn.net.0.proj", "feed-forward"),
        ("layers.0.attention.out", "attention"),
        ("layers.0.attention.q_norm", "other"),
        ("layers_0_attention_norm1", "other"),
        ("layers.0.feed_forward.w1", "feed-forward"),
        ("layers.0.adaLN_modulation.1", "modulation"),
        ("double_layers.0.mlpX.c_proj", "feed-forward"),
        ("double_layers.0.attn.w2q", "attention"),
        ("transformer_blocks.0.img_mod.1", "modulation"),
        ("transformer.layers.0.attention.query_key_value", "attention"),
        ("encoder.block.0.layer.0.SelfAttention.q", "attention"),
        ("encoder_block_0_layer_1_DenseReluDense_wi_0", "feed-forward"),
        ("transformer_blocks.0.ff.gate", "feed-forward"),
        ("av_cross_attn_video_a2v_gate.linear", "modulation"),
        ("joint_blocks.0.x_block.attn.ln_k", "other"),
    ],
)
def test_kinds_of_single_paths(path: str, kind: str) -> None:
    assert kind_of(Target("unet", path)) == kind
