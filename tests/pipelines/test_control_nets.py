"""Stability AI's Control-LoRAs: a ControlNet of a UNet's own weights and a file's, against sums in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from torch import Tensor

import lorry
from lorry.errors import FormatError, LorryError, ShapeMismatchError, StateError, UnknownTargetError
from lorry.files import write_safetensors
from models import tiny_sdxl_pipeline, tiny_unet
from snapshots import check_same, snapshot

Tensors = dict[str, Tensor]
WIDTHS = (4, 6, 8)
ATTENTION = "down_blocks.1.attentions.0"
PAIRS = {
    "input_blocks.0.0": "conv_in",
    "input_blocks.1.0.in_layers.2": "down_blocks.0.resnets.0.conv1",
    "input_blocks.2.0.op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks.3.0.emb_layers.1": "down_blocks.1.resnets.0.time_emb_proj",
    "input_blocks.3.0.skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks.3.1.proj_in": f"{ATTENTION}.proj_in",
    "input_blocks.3.1.transformer_blocks.0.attn1.to_q": f"{ATTENTION}.transformer_blocks.0.attn1.to_q",
    "input_blocks.3.1.transformer_blocks.0.ff.net.0.proj": f"{ATTENTION}.transformer_blocks.0.ff.net.0.proj",
    "middle_block.1.transformer_blocks.0.attn2.to_k": "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "middle_block.2.out_layers.3": "mid_block.resnets.1.conv2",
    "time_embed.2": "time_embedding.linear_2",
}
"""Layers to which a pair is added, some of which have a bias of their own besides."""
NORMS = {
    "input_blocks.1.0.in_layers.0": "down_blocks.0.resnets.0.norm1",
    "middle_block.1.transformer_blocks.0.norm3": "mid_block.attentions.0.transformer_blocks.0.norm3",
}
NEW = {
    "input_hint_block.0": "controlnet_cond_embedding.conv_in",
    **{f"input_hint_block.{2 * n}": f"controlnet_cond_embedding.blocks.{n - 1}" for n in (1, 2, 3, 4)},
    "input_hint_block.10": "controlnet_cond_embedding.conv_out",
    **{f"zero_convs.{n}.0": f"controlnet_down_blocks.{n}" for n in range(4)},
    "middle_block_out.0": "controlnet_mid_block",
}
"""Layers that no UNet has."""


def unet_of(kind: str) -> Any:
    return tiny_unet() if kind == "sd" else tiny_sdxl_pipeline().unet


def made(unet: Any) -> tuple[Tensors, Tensors]:
    """A Control-LoRA for a UNet, and the ControlNet's parameters that it means, in float64."""
    random = torch.Generator().manual_seed(3)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random) / 4

    net: Any = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=WIDTHS)
    expected = {name: tensor.double().clone() for name, tensor in net.state_dict().items()}
    tensors = {"lora_controlnet": torch.zeros(())}
    layers = PAIRS if "add_embedding.linear_1.weight" not in expected else {
        **PAIRS, "label_emb.0.0": "add_embedding.linear_1"
    }  # fmt: skip
    for original, own in layers.items():
        out, inside, *kernel = expected[f"{own}.weight"].shape
        down, up = noise(3, inside, *kernel), noise(out, 3, *(1 for _ in kernel))
        tensors |= {f"{original}.down": down, f"{original}.up": up}
        whole = up.double().flatten(1) @ down.double().flatten(1)
        expected[f"{own}.weight"] += whole.reshape(out, inside, *kernel)
    for original, own in {**layers, **NORMS, **NEW}.items():
        for end in ("weight", "bias"):
            if f"{own}.{end}" in expected and (end == "bias" or original not in layers):
                value = noise(*expected[f"{own}.{end}"].shape)
                tensors[f"{original}.{end}"], expected[f"{own}.{end}"] = value, value.double()
    return tensors, expected


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_control_net_has_the_unets_weights_with_the_files_changes(kind: str, tmp_path: Path) -> None:
    unet = unet_of(kind)
    tensors, expected = made(unet)
    source = write_safetensors(tmp_path / "in.safetensors", tensors)
    before = snapshot(unet)
    net: Any = lorry.control_net(source, unet)
    check_same(snapshot(unet), before)
    assert type(net) is ControlNetModel
    assert net.config["conditioning_embedding_out_channels"] == WIDTHS
    assert not hasattr(net, "lorry")
    found = net.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=1e-6, atol=1e-6, msg=name)
    own = {tensor.data_ptr() for tensor in unet.state_dict().values()}
    assert not own & {tensor.data_ptr() for tensor in found.values()}


def test_it_is_of_the_unets_dtype_and_draws(tmp_path: Path) -> None:
    unet: Any = tiny_unet()
    unet.to(torch.bfloat16)
    source = write_safetensors(tmp_path / "in.safetensors", made(unet)[0])
    net: Any = lorry.control_net(source, unet)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.bfloat16}
    states = torch.zeros(1, 3, net.config.cross_attention_dim, dtype=torch.bfloat16)
    latents, picture = (torch.ones(1, n, size, size, dtype=torch.bfloat16) for n, size in ((4, 8), (3, 32)))
    with torch.no_grad():
        outputs = net(latents, 1, states, picture, return_dict=False)
    assert all(one.isfinite().all() and one.any() for one in (*outputs[0], outputs[1]))


def lost(tensors: Tensors) -> None:
    del tensors["zero_convs.1.0.bias"]


def without_pictures(tensors: Tensors) -> None:
    for key in [key for key in tensors if key.startswith("input_hint_block.")]:
        del tensors[key]


def halved(tensors: Tensors) -> None:
    del tensors["time_embed.2.up"]


def renamed(tensors: Tensors) -> None:
    tensors["time_embod.2.weight"] = torch.zeros(4, 4)


def of_another_base(tensors: Tensors) -> None:
    tensors["time_embed.2.down"] = torch.zeros(3, 5)


def of_two_ranks(tensors: Tensors) -> None:
    tensors["time_embed.2.down"] = tensors["time_embed.2.down"][:2].clone()


def unmarked(tensors: Tensors) -> None:
    del tensors["lora_controlnet"]


DAMAGES: dict[str, tuple[Callable[[Tensors], None], type[LorryError], str]] = {
    "a tensor that no UNet has is missing": (lost, FormatError, "lacks 1 .*controlnet_down_blocks.1.bias"),
    "no layers for the picture": (without_pictures, FormatError, "a picture goes through"),
    "half of a pair": (halved, UnknownTargetError, "time_embed.2.down"),
    "an unknown layer": (renamed, UnknownTargetError, "time_embod.2.weight"),
    "made for another base": (of_another_base, ShapeMismatchError, "`time_embedding.linear_2`: the delta is"),
    "ranks that differ": (of_two_ranks, FormatError, "`time_embed.2`: a LoRA of down"),
    "no marker": (unmarked, FormatError, "is no Control-LoRA"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_file_is_refused_and_named(what: str, tmp_path: Path) -> None:
    unet = tiny_unet()
    tensors = made(unet)[0]
    damage, error, named = DAMAGES[what]
    damage(tensors)
    source = write_safetensors(tmp_path / "in.safetensors", tensors)
    before = snapshot(unet)
    with pytest.raises(error, match=named):
        lorry.control_net(source, unet)
    check_same(snapshot(unet), before)


def test_a_unet_with_adapters_on_it_is_refused(tmp_path: Path) -> None:
    pipe = lorry.attach(tiny_sdxl_pipeline())
    pipe.load_lora_weights({"unet.conv_in.diff": torch.ones_like(pipe.unet.conv_in.weight)})
    source = write_safetensors(tmp_path / "in.safetensors", made(tiny_sdxl_pipeline().unet)[0])
    with pytest.raises(StateError, match="Adapters are loaded on this UNet"):
        lorry.control_net(source, pipe.unet)
