"""The original names of UNets that are no Stable Diffusion: AudioLDM 2's and Kandinsky 3's."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from lorry.binding import ModuleIndex, in_names_of_model, in_original_names, weight_shape
from lorry.binding.draft import equal
from lorry.dialects import get_dialect, read_adapter
from lorry.files import TensorFile
from lorry.names import Target

AUDIOLDM2 = {
    "input_blocks.1.0.in_layers.2": "down_blocks.0.resnets.0.conv1",
    "input_blocks.4.1.proj_in": "down_blocks.1.attentions.0.proj_in",
    "input_blocks.4.3.proj_in": "down_blocks.1.attentions.2.proj_in",
    "input_blocks.5.2.transformer_blocks.0.attn2.to_k": "down_blocks.1.attentions.4.transformer_blocks.0.attn2.to_k",
    "input_blocks.6.0.op": "down_blocks.1.downsamplers.0.conv",
    "middle_block.3.proj_out": "mid_block.attentions.2.proj_out",
    "middle_block.4.in_layers.2": "mid_block.resnets.1.conv1",
    "output_blocks.0.1.norm": "up_blocks.0.attentions.0.norm",
    "output_blocks.2.3.norm": "up_blocks.0.attentions.8.norm",
    "output_blocks.2.4.conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks.11.0.out_layers.3": "up_blocks.3.resnets.2.conv2",
}


def test_audioldm2_has_several_attentions_a_layer_in_the_running_count() -> None:
    options: dict[str, Any] = {
        "block_out_channels": (32, 64, 96, 160),
        "cross_attention_dim": ((None, 64, 48),) * 4,
        "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
        "up_block_types": (*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
    }
    with torch.device("meta"):
        model = diffusers.AudioLDM2UNet2DConditionModel(**options)
    index = ModuleIndex(model)
    for original, path in AUDIOLDM2.items():
        assert path in index.modules
        assert index.find_path(Target("unet", original)) == path
        assert index.find_path(Target("unet", original.replace(".", "_"), flat=True)) == path
    named = {piece.path for pieces in index.original.values() for piece in pieces}
    assert {path for path, module in index.modules.items() if weight_shape(module) is not None} <= named


KANDINSKY3 = {
    "to_time_embed.1": "time_embedding.linear_1",
    "feature_pooling.attention.output_layer": "add_time_condition.attention.to_out.0",
    "projection_lin": "encoder_hid_proj.projection_linear",
    "in_layer": "conv_in",
    "out_layer.2": "conv_out",
    "down_samples.1.self_attention_block.attention.to_query": "down_blocks.1.attentions.0.attention.to_q",
    "down_samples.1.resnet_attn_blocks.0.0.shortcut_projection": "down_blocks.1.resnets_in.0.shortcut_projection",
    "down_samples.3.resnet_attn_blocks.2.1.feed_forward.0": "down_blocks.3.attentions.3.feed_forward.0",
    "up_samples.0.resnet_attn_blocks.1.1.in_norm.context_mlp.1": "up_blocks.0.attentions.2.in_norm.context_mlp.1",
    "up_samples.1.resnet_attn_blocks.0.0.resnet_blocks.1.up_sample": (
        "up_blocks.1.resnets_in.0.resnet_blocks.1.up_sample"
    ),
    "up_samples.3.resnet_attn_blocks.2.2.resnet_blocks.3.projection": (
        "up_blocks.3.resnets_out.2.resnet_blocks.3.projection"
    ),
}


def kandinsky3() -> nn.Module:
    with torch.device("meta"):
        return diffusers.Kandinsky3UNet()


def test_kandinsky3s_blocks_are_of_triples_in_its_original_checkpoint() -> None:
    index = ModuleIndex(kandinsky3())
    for original, path in KANDINSKY3.items():
        assert path in index.modules
        assert index.find_path(Target("unet", original)) == path
        assert index.find_path(Target("unet", original.replace(".", "_"), flat=True)) == path
    named = {piece.path for pieces in index.original.values() for piece in pieces}
    layers = {path for path, module in index.modules.items() if weight_shape(module) is not None}
    assert len(named & layers) == len(layers) == 604


@pytest.mark.parametrize("dialect", ["kohya", "comfyui", "dotted-kohya"])
def test_a_lora_of_kandinsky3_in_its_original_names_means_its_own_layers(dialect: str) -> None:
    tensors = {}
    models = {"unet": kandinsky3()}
    for number, path in enumerate(sorted(set(KANDINSKY3.values()))):
        shape = weight_shape(dict(models["unet"].named_modules())[path])
        if shape and len(shape) == 2:
            tensors[f"unet.{path}.lora_down.weight"] = torch.full((2, shape[1]), float(number))
            tensors[f"unet.{path}.lora_up.weight"] = torch.full((shape[0], 2), float(number))
            tensors[f"unet.{path}.alpha"] = torch.tensor(1.0)
    adapter = in_names_of_model(read_adapter(TensorFile(tensors)), models)
    file = get_dialect(dialect).write(in_original_names(adapter, models))
    assert any("self_attention_block" in key for key in file.tensors)
    assert not any("attentions" in key for key in file.tensors)
    again = in_names_of_model(read_adapter(file), models)
    found = {str(entry.target): entry.delta for entry in again.entries}
    assert found.keys() == {str(entry.target) for entry in adapter.entries}
    assert all(equal(entry.delta, found[str(entry.target)]) for entry in adapter.entries)
