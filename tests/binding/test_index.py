"""The names that files use for a live model's modules, found in the model."""

from __future__ import annotations

import functools
from typing import Any

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet
from torch import nn

from architectures import SD2, SD15, SDXL, Config
from lorry.binding import ModuleIndex, weight_shape
from lorry.binding.original_names import sgm_names
from lorry.errors import StateError, UnknownTargetError
from lorry.names import Target
from models import carriers, tiny_flux_transformer, tiny_text_encoder, tiny_unet

CONFIGS: dict[str, Config] = {"sd15": SD15, "sd2": SD2, "sdxl": SDXL}


@functools.cache
def full_size(name: str) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**CONFIGS[name])


@functools.cache
def index_of(name: str) -> ModuleIndex:
    return ModuleIndex(full_size(name))


# --- original names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_every_layer_of_a_published_unet_has_one_original_name(name: str) -> None:
    paths = list(dict(full_size(name).named_modules()))
    original = sgm_names(paths)
    named = set(original.values())
    assert len(named) == len(original), "one path has two original names"
    assert named >= carriers(full_size(name)).keys(), "a layer has no original name"


def stable_cascade(**changes: Any) -> nn.Module:
    with torch.device("meta"):
        return StableCascadeUNet(
            **{
                "block_out_channels": (8,),
                "block_types_per_layer": (
                    ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
                ),
                "down_blocks_repeat_mappers": (1,),
                "up_blocks_repeat_mappers": (1,),
                "down_num_layers_per_block": (2,),
                "up_num_layers_per_block": (1,),
                "num_attention_heads": (2,),
                "conditioning_dim": 8,
                "clip_text_in_channels": 6,
                "clip_text_pooled_in_channels": 6,
                "clip_image_in_channels": 6,
                "timestep_conditioning_type": ("sca",),
                "dropout": (0.0,),
                **changes,
            }
        )


@pytest.mark.parametrize("flat", [False, True])
def test_stable_cascades_attentions_have_the_names_of_torchs_and_of_comfyuis(flat: bool) -> None:
    index = ModuleIndex(stable_cascade())
    attention = "down_blocks.0.5.attention"
    names = {f"attn.to_{part}": [f"to_{part}"] for part in "qkv"}
    names |= {"attn.out_proj": ["to_out.0"], "attn.in_proj": ["to_q", "to_k", "to_v"]}
    for original, own in names.items():
        path = f"{attention}.{original}"
        places = index.find(Target("prior", path.replace(".", "_") if flat else path, flat=flat))
        assert places is not None
        assert [place.path for place in places] == [f"{attention}.{layer}" for layer in own]


def test_the_mapper_of_stable_cascades_second_stage_has_its_original_name() -> None:
    second = {"clip_text_in_channels": None, "clip_image_in_channels": None}
    paths = {
        name: ModuleIndex(stable_cascade(**changes)).find_path(Target("prior", "clip_mapper"))
        for name, changes in (("first", {}), ("second", second))
    }
    assert paths == {"first": None, "second": "clip_txt_pooled_mapper"}


RESNET = "down_blocks.0.resnets.1"
ATTENTION = "up_blocks.1.attentions.2"
VIDEO = {
    "UNetSpatioTemporalConditionModel": {
        "input_blocks.2.0.in_layers.2": [f"{RESNET}.spatial_res_block.conv1"],
        "input_blocks.2.0.time_stack.emb_layers.1": [f"{RESNET}.temporal_res_block.time_emb_proj"],
        "input_blocks.3.0.op": ["down_blocks.0.downsamplers.0.conv"],
        "middle_block.2.time_stack.in_layers.0": ["mid_block.resnets.1.temporal_res_block.norm1"],
        "output_blocks.5.1.time_stack.0.ff_in.net.2": [
            f"{ATTENTION}.temporal_transformer_blocks.0.ff_in.net.2"
        ],
        "output_blocks.5.1.time_pos_embed.2": [f"{ATTENTION}.time_pos_embed.linear_2"],
        "output_blocks.5.2.conv": ["up_blocks.1.upsamplers.0.conv"],
        "label_emb.0.2": ["add_embedding.linear_2"],
    },
    "UNet3DConditionModel": {
        "input_blocks.0.1.proj_in": ["transformer_in.proj_in"],
        "input_blocks.2.0.temopral_conv.conv1.0": ["down_blocks.0.temp_convs.1.conv1.0"],
        "input_blocks.2.2.transformer_blocks.0.attn1.to_q": [
            "down_blocks.0.temp_attentions.1.transformer_blocks.0.attn1.to_q"
        ],
        "input_blocks.3.op": ["down_blocks.0.downsamplers.0.conv"],
        "middle_block.2.proj_in": ["mid_block.temp_attentions.0.proj_in"],
        "middle_block.3.out_layers.3": ["mid_block.resnets.1.conv2"],
        "output_blocks.2.1.conv": ["up_blocks.0.upsamplers.0.conv"],
        "output_blocks.5.3.conv": ["up_blocks.1.upsamplers.0.conv"],
    },
    "I2VGenXLUNet": {
        "local_image_concat.2": ["image_latents_proj_in.2"],
        "local_image_embedding.5": ["image_latents_context_embedding.5"],
        "local_temporal_encoder.layers.0.0.fn.to_qkv": [
            f"image_latents_temporal_encoder.attn1.to_{part}" for part in "qkv"
        ],
        "local_temporal_encoder.layers.0.1.net.0.0": ["image_latents_temporal_encoder.ff.net.0.proj"],
        "middle_block.3.out_layers.3": ["mid_block.resnets.1.conv2"],
    },
}


@pytest.mark.parametrize("cls", VIDEO)
def test_the_unets_of_video_models_have_the_names_of_their_checkpoints(cls: str) -> None:
    with torch.device("meta"):
        index = ModuleIndex(getattr(diffusers, cls)())
    for original, paths in VIDEO[cls].items():
        for target in (Target("unet", original), Target("unet", original.replace(".", "_"), flat=True)):
            places = index.find(target)
            assert places is not None, original
            assert [place.path for place in places] == paths
    named = {piece.path for pieces in index.original.values() for piece in pieces}
    layers = {path for path, module in index.modules.items() if weight_shape(module) is not None}
    assert {path.split(".")[0] for path in layers - named} <= {"context_embedding", "fps_embedding"}


def test_a_unet_whose_attentions_do_not_stand_by_its_layers_has_no_names_of_stable_diffusion() -> None:
    blocks = ("resnets.0.conv1", "resnets.1.conv1", "attentions.0.norm", "attentions.1.norm")
    paths = ["conv_in", *(f"down_blocks.0.{path}" for path in blocks)]
    assert len(sgm_names(paths)) == 5
    assert sgm_names([*paths, "down_blocks.0.attentions.2.norm"]) == {}
    assert sgm_names(["conv_in", "down_blocks.0.attentions.0.norm"]) == {}


@pytest.mark.parametrize("name", CONFIGS)
def test_no_original_name_is_also_another_modules_own_path(name: str) -> None:
    index = index_of(name)
    for original, path in sgm_names(index.modules).items():
        assert index.modules.get(original) in (None, index.modules[path]), original
        assert index.find_path(Target("unet", original)) == path
        assert index.find_path(Target("unet", original.replace(".", "_"), flat=True)) == path


@pytest.mark.parametrize("name", CONFIGS)
def test_original_names_are_those_that_diffusers_converts(name: str) -> None:
    model = full_size(name)
    original = {path: alias for alias, path in sgm_names(dict(model.named_modules())).items()}
    keys = [key for key in model.state_dict() if key.rpartition(".")[0] in original]
    assert len(keys) == len(model.state_dict())
    checkpoint, number = {}, {}
    for count, key in enumerate(keys):
        path, _, end = key.rpartition(".")
        checkpoint[f"model.diffusion_model.{original[path]}.{end}"] = torch.tensor(float(count))
        number[key] = float(count)
    config: dict[str, Any] = dict(model.config) | ({"num_class_embeds": None} if name == "sdxl" else {})
    converted = convert_ldm_unet_checkpoint(checkpoint, config)
    assert {key: float(tensor) for key, tensor in converted.items()} == number


KNOWN = {
    "sd15": {
        "input_blocks.0.0": "conv_in",
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.1.0.in_layers.2": "down_blocks.0.resnets.0.conv1",
        "input_blocks.1.1.proj_in": "down_blocks.0.attentions.0.proj_in",
        "input_blocks.2.1.transformer_blocks.0.norm1": "down_blocks.0.attentions.1.transformer_blocks.0.norm1",
        "input_blocks.3.0.op": "down_blocks.0.downsamplers.0.conv",
        "input_blocks.4.0.skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
        "input_blocks.6.0.op": "down_blocks.1.downsamplers.0.conv",
        "input_blocks.8.1.proj_out": "down_blocks.2.attentions.1.proj_out",
        "input_blocks.9.0.op": "down_blocks.2.downsamplers.0.conv",
        "input_blocks.10.0.emb_layers.1": "down_blocks.3.resnets.0.time_emb_proj",
        "input_blocks.11.0.out_layers.3": "down_blocks.3.resnets.1.conv2",
        "middle_block.0.in_layers.2": "mid_block.resnets.0.conv1",
        "middle_block.1.proj_in": "mid_block.attentions.0.proj_in",
        "middle_block.2.out_layers.3": "mid_block.resnets.1.conv2",
        "output_blocks.0.0.in_layers.2": "up_blocks.0.resnets.0.conv1",
        "output_blocks.2.1.conv": "up_blocks.0.upsamplers.0.conv",
        "output_blocks.3.1.proj_in": "up_blocks.1.attentions.0.proj_in",
        "output_blocks.5.2.conv": "up_blocks.1.upsamplers.0.conv",
        "output_blocks.8.2.conv": "up_blocks.2.upsamplers.0.conv",
        "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj": (
            "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj"
        ),
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    },
    "sd2": {
        "input_blocks.8.1.proj_in": "down_blocks.2.attentions.1.proj_in",
        "output_blocks.2.1.conv": "up_blocks.0.upsamplers.0.conv",
        "output_blocks.8.2.conv": "up_blocks.2.upsamplers.0.conv",
    },
    "sdxl": {
        "label_emb.0.0": "add_embedding.linear_1",
        "label_emb.0.2": "add_embedding.linear_2",
        "input_blocks.2.0.in_layers.2": "down_blocks.0.resnets.1.conv1",
        "input_blocks.4.1.transformer_blocks.1.attn2.to_k": (
            "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k"
        ),
        "input_blocks.5.1.proj_in": "down_blocks.1.attentions.1.proj_in",
        "input_blocks.6.0.op": "down_blocks.1.downsamplers.0.conv",
        "input_blocks.7.1.transformer_blocks.9.ff.net.2": "down_blocks.2.attentions.0.transformer_blocks.9.ff.net.2",
        "middle_block.1.transformer_blocks.9.attn1.to_v": "mid_block.attentions.0.transformer_blocks.9.attn1.to_v",
        "output_blocks.0.1.transformer_blocks.0.attn1.to_out.0": (
            "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
        ),
        "output_blocks.2.2.conv": "up_blocks.0.upsamplers.0.conv",
        "output_blocks.5.2.conv": "up_blocks.1.upsamplers.0.conv",
        "output_blocks.8.0.skip_connection": "up_blocks.2.resnets.2.conv_shortcut",
    },
}


@pytest.mark.parametrize(
    ("name", "original", "path"), [(n, o, p) for n, names in KNOWN.items() for o, p in names.items()]
)
def test_known_original_names_mean_what_the_format_notes_say(name: str, original: str, path: str) -> None:
    assert path in index_of(name).modules
    assert index_of(name).find_path(Target("unet", original)) == path
    assert index_of(name).find_path(Target("unet", original.replace(".", "_"), flat=True)) == path


def test_an_original_name_past_the_end_of_the_model_means_nothing() -> None:
    assert index_of("sdxl").find_path(Target("unet", "output_blocks.9.0.in_layers.2")) is None
    assert index_of("sdxl").find_path(Target("unet", "input_blocks_10_0_in_layers_2", flat=True)) is None


def test_models_that_are_no_unets_have_no_original_names() -> None:
    assert sgm_names(dict(tiny_text_encoder().named_modules())) == {}
    assert sgm_names(dict(tiny_flux_transformer().named_modules())) == {}


# --- dotted and flattened names -----------------------------------------------------------------------------------


def test_every_module_of_a_unet_is_found_by_its_own_and_by_its_flattened_path() -> None:
    index = ModuleIndex(tiny_unet())
    for path in index.modules:
        if path.endswith(".to_out"):  # a list; the layer in it is what files mean by the name
            assert index.find_path(Target("unet", path)) == f"{path}.0"
            continue
        assert index.find_path(Target("unet", path)) == path
        assert index.find_path(Target("unet", path.replace(".", "_"), flat=True)) == path


def test_a_flattened_name_is_not_read_as_a_dotted_one_nor_a_parameter_as_a_layer() -> None:
    index = ModuleIndex(tiny_unet())
    assert index.find_path(Target("unet", "conv_in.weight")) is None
    assert index.find_path(Target("unet", "mid_block.resnets.0.conv1", flat=True)) is None


@pytest.mark.parametrize(
    ("said", "rows"),
    [
        ("transformer.blocks.0.attn.to.q", ["transformer_blocks.0.attn.to_q"]),
        ("transformer_blocks_0_attn_to_q", ["transformer_blocks.0.attn.to_q"]),
        ("double_blocks.0.img_attn_proj", ["transformer_blocks.0.attn.to_out.0"]),
        (
            "double.blocks.0.img.attn.qkv",
            [f"transformer_blocks.0.attn.to_{part}" for part in "qkv"],
        ),
    ],
)
def test_a_dotted_name_may_differ_by_dots_for_underscores_from_the_only_one_it_can_mean(
    said: str, rows: list[str]
) -> None:
    pieces = ModuleIndex(tiny_flux_transformer()).find_pieces(Target("transformer", said))
    assert pieces is not None
    assert [piece.path for piece in pieces] == rows


def test_a_dotted_name_that_can_mean_two_modules_by_its_dots_is_refused_with_both_paths() -> None:
    model = nn.Module()
    model.a = nn.Module()
    model.a.b_c = nn.Linear(2, 2)
    model.a_b = nn.Module()
    model.a_b.c = nn.Linear(2, 2)
    index = ModuleIndex(model)
    with pytest.raises(UnknownTargetError, match=r"`a_b_c` can mean a\.b_c or a_b\.c: .* ambiguous"):
        index.find_path(Target("transformer", "a.b.c"))
    assert index.find_path(Target("transformer", "a.b_c")) == "a.b_c"


class Encoder(nn.Module):
    """A text encoder of a transformers version that has, or has dropped, a level at its root."""

    def __init__(self, level: str | None) -> None:
        super().__init__()
        inner = nn.ModuleDict({"encoder": nn.ModuleDict({"fc1": nn.Linear(2, 2)})})
        if level:
            self.add_module(level, inner)
        else:
            self.encoder = inner["encoder"]


LEVELS = [(has, says) for has in (None, "text_model", "model") for says in ("", "text_model.", "model.")]
"""What a version of transformers has, and what a file says; one level for another has never happened."""


@pytest.mark.parametrize(("has", "says"), [(h, s) for h, s in LEVELS if not (h and s) or s.startswith(h)])
@pytest.mark.parametrize("flat", [False, True])
def test_a_level_at_the_root_of_a_text_encoder_may_be_there_or_not(
    says: str, flat: bool, has: str | None
) -> None:
    name = f"{says}encoder.fc1"
    path = f"{has}.encoder.fc1" if has else "encoder.fc1"
    target = Target("text_encoder", name.replace(".", "_") if flat else name, flat)
    assert ModuleIndex(Encoder(has)).find_path(target) == path


def test_the_text_encoder_of_the_installed_transformers_is_found_with_and_without_its_level() -> None:
    index = ModuleIndex(tiny_text_encoder())
    for name in ("encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.0.self_attn.q_proj"):
        found = index.find_path(Target("text_encoder", name))
        assert found is not None
        assert found == index.find_path(Target("text_encoder", name.replace(".", "_"), flat=True))
        assert isinstance(index.modules[found], nn.Linear)


def test_a_flattened_name_of_two_modules_is_refused_with_both_paths() -> None:
    model = nn.Module()
    model.a_b = nn.Linear(2, 2)
    model.a = nn.Module()
    model.a.b = nn.Linear(2, 2)
    index = ModuleIndex(model)
    with pytest.raises(UnknownTargetError, match=r"`a_b` can mean a\.b or a_b: .* ambiguous"):
        index.find_path(Target("unet", "a_b", flat=True))
    assert index.find_path(Target("unet", "a.b")) == "a.b"
    assert index.find_path(Target("unet", "a_b")) == "a_b"


def test_a_models_own_name_goes_before_an_original_one() -> None:
    model = tiny_unet()
    model.add_module("time_embed", nn.ModuleList([nn.Linear(2, 2)]))
    index = ModuleIndex(model)
    assert index.find_path(Target("unet", "time_embed.0")) == "time_embed.0"
    assert index.find_path(Target("unet", "time_embed_0", flat=True)) == "time_embed.0"


def test_a_model_that_peft_has_wrapped_is_refused() -> None:
    from peft import LoraConfig

    model = tiny_unet()
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(StateError, match=r"carries adapters that PEFT loaded .*`unload_lora_weights\(\)`"):
        ModuleIndex(model)
