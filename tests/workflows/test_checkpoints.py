"""Checkpoints in every layout: each parameter of the pipeline is found, and is the model's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from scripts.names.generate import CHECKPOINTS, build
from torch import Tensor

from lorry.binding.original_names import sgm_names
from lorry.binding.tables import original_names
from lorry.errors import AdapterNotFoundError, BrokenFileError, FormatError
from lorry.files import read_safetensors, write_safetensors
from lorry.workflows.checkpoints import Place, open_checkpoint, skeleton_of
from lorry.workflows.checkpoints.single_file import sort_single_file
from models import (
    tiny_flux_transformer,
    tiny_ovis_transformer,
    tiny_sd3_transformer,
    tiny_sd_pipeline,
    tiny_sdxl_pipeline,
    tiny_unet,
)

SD_BLOCKS: dict[str, Any] = {
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}


def sgm_state(unet: torch.nn.Module) -> dict[str, Tensor]:
    """A UNet's parameters under the names of a single file."""
    names = {path: name for name, path in sgm_names(path for path, _ in unet.named_modules() if path).items()}
    state = {}
    for key, value in unet.state_dict().items():
        path, _, parameter = key.rpartition(".")
        state[f"model.diffusion_model.{names[path]}.{parameter}"] = value
    return state


def openclip_state(encoder: torch.nn.Module) -> dict[str, Tensor]:
    """A CLIP text encoder's parameters under OpenCLIP's names, q, k and v in one."""
    inside = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    state: dict[str, Tensor] = {}
    for key, value in encoder.state_dict().items():
        name = key.removeprefix("text_model.")
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if match and match[2].endswith(("q_proj", "k_proj", "v_proj")):
            fused = f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"
            parts = [encoder.state_dict()[key.replace(match[2], f"self_attn.{p}_proj")] for p in "qkv"]
            state[fused] = torch.cat(parts)
        elif match:
            state[f"transformer.resblocks.{match[1]}.{inside.get(match[2], 'attn.out_proj')}.{match[3]}"] = (
                value
            )
        elif name == "text_projection.weight":
            state["text_projection"] = value.T.contiguous()
        else:
            outside = {"embeddings.token_embedding.weight": "token_embedding.weight"}
            outside["embeddings.position_embedding.weight"] = "positional_embedding"
            outside |= {f"final_layer_norm.{p}": f"ln_final.{p}" for p in ("weight", "bias")}
            state[outside[name]] = value
    return state


def single_file(path: Path, sdxl: bool) -> tuple[Path, Any]:
    """A tiny pipeline of SD 1.x or SDXL with blocks as many as the real one has, as a single file."""
    if sdxl:
        pipeline = tiny_sdxl_pipeline()
        blocks = {
            "block_out_channels": (8, 8, 16),
            "layers_per_block": 2,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 1, 2),
            "attention_head_dim": 2,
        }
        pipeline.unet = type(pipeline.unet).from_config({**pipeline.unet.config, **blocks})
        text = {
            f"conditioner.embedders.0.transformer.text_model.{k}": v
            for k, v in plain(pipeline.text_encoder).items()
        }
        text |= {
            f"conditioner.embedders.1.model.{k}": v
            for k, v in openclip_state(pipeline.text_encoder_2).items()
        }
    else:
        pipeline = tiny_sd_pipeline()
        pipeline.unet = tiny_unet(**SD_BLOCKS)
        text = {
            f"cond_stage_model.transformer.text_model.{k}": v for k, v in plain(pipeline.text_encoder).items()
        }
    state = {**sgm_state(pipeline.unet), **text, "first_stage_model.x": torch.ones(3)}
    return write_safetensors(path, state, {"format": "pt"}), pipeline


def plain(encoder: torch.nn.Module) -> dict[str, Tensor]:
    return {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}


def check_has(path: Path, component: str, expected: Mapping[str, Tensor]) -> None:
    """Raise where a component's parameters are not those of a model, to the bit."""
    with open_checkpoint(path) as checkpoint:
        places = checkpoint.components[component]
        found = {name.removeprefix("text_model."): checkpoint.read(place) for name, place in places.items()}
    assert set(found) == {name.removeprefix("text_model.") for name in expected}
    for name, value in expected.items():
        assert torch.equal(found[name.removeprefix("text_model.")], value), name


@pytest.mark.parametrize("sdxl", [False, True], ids=["SD", "SDXL"])
def test_a_single_file_has_every_parameter_of_its_pipeline(tmp_path: Path, sdxl: bool) -> None:
    path, pipeline = single_file(tmp_path / "model.safetensors", sdxl)
    components = ["unet", "text_encoder", "text_encoder_2"][: 3 if sdxl else 2]
    for component in components:
        check_has(path, component, getattr(pipeline, component).state_dict())
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.components) == components


def test_a_pickle_has_every_parameter_of_its_pipeline(tmp_path: Path) -> None:
    path, pipeline = single_file(tmp_path / "model.safetensors", sdxl=False)
    torch.save({"state_dict": dict(read_safetensors(path).tensors), "epoch": 3}, tmp_path / "model.ckpt")
    for component in ("unet", "text_encoder"):
        check_has(tmp_path / "model.ckpt", component, getattr(pipeline, component).state_dict())


def original_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """A transformer's parameters under the names of its original checkpoint, with the rows of fused layers together."""
    modules = [path for path, _ in model.named_modules() if path]
    names = original_names(model, [*modules, *(path for path, _ in model.named_parameters())])
    state, pieces = dict(model.state_dict()), {piece.path for found in names.values() for piece in found}
    original = {key: value for key, value in state.items() if key.rpartition(".")[0] not in pieces}
    for name, found in names.items():
        for parameter in ("weight", "bias"):
            parts = [
                state[key].chunk(piece.of)[piece.part]
                for piece in found
                if (key := f"{piece.path}.{parameter}") in state
            ]
            called = "scale" if name.endswith("_norm") and parameter == "weight" else parameter
            original |= {f"{name}.{called}": torch.cat(parts)} if parts else {}
        if found[0].path in original:  # a parameter of a block's own
            original[name] = original.pop(found[0].path)
    return original


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("build", [tiny_flux_transformer, tiny_sd3_transformer, tiny_ovis_transformer])
def test_a_single_file_has_every_parameter_of_a_transformer(tmp_path: Path, build: Any, prefix: str) -> None:
    model = build()
    state = {f"{prefix}{key}": value for key, value in original_state(model).items()}
    assert len(state) < len(model.state_dict())
    path = write_safetensors(tmp_path / "model.safetensors", state)
    check_has(path, "transformer", model.state_dict())
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.classes == {"transformer": type(model).__name__}


def test_a_layer_of_which_a_part_is_missing_is_named(tmp_path: Path) -> None:
    model = tiny_ovis_transformer()
    state = original_state(model)
    lost = next(key for key in state if key.endswith("img_mlp.up_proj.weight"))
    del state[lost]
    path = write_safetensors(tmp_path / "model.safetensors", state)
    kept = re.escape(lost.replace("up_proj", "gate_proj"))
    with pytest.raises(FormatError, match=rf"lies in 2 tensors, expected all of them, got .*{kept} alone"):
        open_checkpoint(path)


def test_a_single_file_with_diffusers_names_keeps_them(tmp_path: Path) -> None:
    model = tiny_flux_transformer()
    path = write_safetensors(tmp_path / "model.safetensors", dict(model.state_dict()))
    check_has(path, "transformer", model.state_dict())


@pytest.mark.filterwarnings("ignore:.* is deprecated and will be removed:FutureWarning:diffusers")
@pytest.mark.parametrize("name", [one.model for one in CHECKPOINTS])
def test_the_shapes_of_every_known_transformer_are_told_from_its_original_checkpoint(name: str) -> None:
    model = build(next(checkpoint for checkpoint in CHECKPOINTS if checkpoint.model == name))
    tensors = original_state(model)
    places = sort_single_file(Path("file"), tensors)[0]["transformer"]
    got = {key: tuple(place.of(*(tensors[k] for k in place.keys)).shape) for key, place in places.items()}
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert got == shapes
    own = sort_single_file(Path("file"), model.state_dict())[0]["transformer"]
    assert own == {key: Place(Path("file"), (key,)) for key in shapes}


@pytest.mark.parametrize("differential", [True, False])
def test_rows_that_the_original_has_in_another_order_are_told_by_their_number(
    differential: bool, tmp_path: Path
) -> None:
    model = diffusers.StableAudio3DiTModel(
        io_channels=8, embed_dim=16, depth=2, num_heads=2, use_differential_attention=differential
    )
    state = original_state(model)
    name = "transformer.layers.1.self_attn.to_qkv.weight"
    rows = model.get_parameter("transformer_blocks.1.self_attn.to_qkv.weight")
    assert torch.equal(state[name], rows) is not differential
    check_has(write_safetensors(tmp_path / "model.safetensors", state), "transformer", model.state_dict())


def test_a_folder_has_every_parameter_of_its_pipeline_and_so_has_a_components(tmp_path: Path) -> None:
    pipeline = tiny_sdxl_pipeline()
    pipeline.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    for component in ("unet", "text_encoder", "text_encoder_2"):
        check_has(tmp_path, component, getattr(pipeline, component).state_dict())
    check_has(tmp_path / "unet", "unet", pipeline.unet.state_dict())
    check_has(tmp_path / "text_encoder", "text_encoder", pipeline.text_encoder.state_dict())


def test_a_skeleton_has_the_models_modules_shapes_and_class(tmp_path: Path) -> None:
    pipeline = tiny_sd_pipeline()
    pipeline.save_pretrained(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        skeleton = skeleton_of(checkpoint, "unet")
    assert type(skeleton).__name__ == "UNet2DConditionModel"
    shapes = {name: tuple(parameter.shape) for name, parameter in skeleton.named_parameters()}
    assert shapes == {name: tuple(parameter.shape) for name, parameter in pipeline.unet.named_parameters()}
    assert all(parameter.is_meta for parameter in skeleton.parameters())


def test_what_is_no_checkpoint_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFoundError, match="no such checkpoint"):
        open_checkpoint(tmp_path / "no.safetensors")
    with pytest.raises(AdapterNotFoundError, match="no weights in it"):
        open_checkpoint(tmp_path)
    torch.save({"state_dict": {"x": torch.ones(2)}, "hook": print}, tmp_path / "model.ckpt")
    with pytest.raises(BrokenFileError, match="one that would run"):
        open_checkpoint(tmp_path / "model.ckpt")
