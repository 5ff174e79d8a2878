"""A pipeline with two denoisers: which of them a file goes to, and both in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import lorry
from lorry.errors import NothingAppliedError, StateError
from lorry.patching import find_state

WIDTH = 24


class Wan22(lorry.LoraLoaderMixin):
    """As much of Wan 2.2's pipeline as the loader looks at."""

    def __init__(self, *, both: bool = True) -> None:
        self.transformer = tiny_wan(0)
        if both:
            self.transformer_2 = tiny_wan(1)


def tiny_wan(seed: int) -> WanTransformer3DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
            text_dim=8, freq_dim=8, ffn_dim=20, num_layers=2,
        ).eval()  # fmt: skip


def in_original_names() -> dict[str, Tensor]:
    """The names of Wan's own checkpoint, as ComfyUI and its trainers write them."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name, out, width in (
        ("self_attn.q", WIDTH, WIDTH),
        ("cross_attn.o", WIDTH, WIDTH),
        ("ffn.0", 20, WIDTH),
    ):
        for block in range(2):
            stem = f"diffusion_model.blocks.{block}.{name}"
            tensors[f"{stem}.lora_down.weight"] = torch.randn(2, width, generator=generator)
            tensors[f"{stem}.lora_up.weight"] = torch.randn(out, 2, generator=generator)
            tensors[f"{stem}.alpha"] = torch.tensor(1.0)
    return tensors


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(1, 4, 1, 4, 4, generator=generator),
        "timestep": torch.tensor([3]),
        "encoder_hidden_states": torch.randn(1, 5, 8, generator=generator),
    }


@torch.no_grad()
def outputs(pipe: Wan22) -> list[Tensor]:
    return [model(**inputs()).sample for model in (pipe.transformer, pipe.transformer_2)]


def test_a_pair_of_files_goes_to_the_denoisers_whose_noise_their_names_say(tmp_path: Path) -> None:
    pipe = Wan22()
    before = outputs(pipe)
    for noise in ("high", "low"):
        save_file(in_original_names(), tmp_path / f"style_{noise}_noise.safetensors")
        pipe.load_lora_weights(tmp_path / f"style_{noise}_noise.safetensors", adapter_name=noise)
    assert pipe.get_list_adapters() == {"transformer": ["high"], "transformer_2": ["low"]}
    pipe.set_adapters(["high", "low"])
    assert not any(torch.equal(one, other) for one, other in zip(before, outputs(pipe), strict=True))
    pipe.unload_lora_weights()
    assert all(torch.equal(one, other) for one, other in zip(before, outputs(pipe), strict=True))


def test_one_file_fills_both_denoisers_in_one_call() -> None:
    pipe = Wan22()
    report = pipe.load_lora_weights(
        in_original_names(), adapter_name="x", denoisers=["transformer", "transformer_2"]
    )
    assert pipe.get_list_adapters() == {"transformer": ["x"], "transformer_2": ["x"]}
    assert (report.applied, report.key_count, report.targets) == (18, 18, 12)


@pytest.mark.parametrize("how", ["first", "of a known layout", "hotswap"])
def test_two_denoisers_of_one_file_have_one_memory_and_move_one_by_one(how: str, tmp_path: Path) -> None:
    save_file(in_original_names(), tmp_path / "one.safetensors")
    both: Any = {"adapter_name": "x", "denoisers": ["transformer", "transformer_2"]}
    pipe = Wan22()
    pipe.load_lora_weights(tmp_path / "one.safetensors", **both)
    if how == "hotswap":
        pipe.load_lora_weights(tmp_path / "one.safetensors", **both, hotswap=True)
    elif how == "of a known layout":
        pipe = Wan22()
        pipe.load_lora_weights(tmp_path / "one.safetensors", **both)
    one, other = (held(model) for model in (pipe.transformer, pipe.transformer_2))
    assert not {*map(id, one)} & {*map(id, other)}
    assert {tensor.untyped_storage().data_ptr() for tensor in one} == {
        tensor.untyped_storage().data_ptr() for tensor in other
    }


def held(model: WanTransformer3DModel) -> list[Tensor]:
    """What is kept of the adapter "x" for a model, and the factors that stand in it."""
    layers = [m for m in model.modules() if m._buffers.get("lorry_down") is not None]
    standing = [m.get_buffer(name) for m in layers for name in ("lorry_down", "lorry_up")]
    state = find_state(model)
    assert state is not None
    return [*state.adapters["x"].tensors(), *standing]


@pytest.mark.parametrize("container", ["", "diffusion_model."])
def test_one_file_of_ai_toolkit_has_another_adapter_for_each_denoiser(container: str) -> None:
    pipe = Wan22()
    one = in_original_names()
    both = {
        key.replace("diffusion_model.", f"{container}transformer_{number}."): number * tensor
        for key, tensor in one.items()
        for number in (1, 2)
        if not key.endswith("alpha") or number == 1
    }
    weights = [m.get_parameter("blocks.0.attn1.to_q.weight") for m in (pipe.transformer, pipe.transformer_2)]
    before = [weight.detach().clone() for weight in weights]
    report = pipe.load_lora_weights(both, adapter_name="x")
    assert (report.applied, report.key_count, report.targets) == (30, 30, 12)
    assert pipe.get_list_adapters() == {"transformer": ["x"], "transformer_2": ["x"]}
    pipe.fuse_lora()
    stem = "diffusion_model.blocks.0.self_attn.q.lora"
    change = one[f"{stem}_up.weight"] @ one[f"{stem}_down.weight"]
    for weight, was, scale in zip(weights, before, (0.5, 4.0), strict=True):
        torch.testing.assert_close(weight.detach(), was + scale * change)


def test_the_argument_of_diffusers_fills_the_second() -> None:
    pipe = Wan22()
    pipe.load_lora_weights(in_original_names(), adapter_name="x", load_into_transformer_2=True)
    assert pipe.get_list_adapters() == {"transformer_2": ["x"]}
    with pytest.raises(StateError, match="'transformer_2' is not among this pipeline's denoisers"):
        Wan22(both=False).load_lora_weights(in_original_names(), load_into_transformer_2=True)


class MiniMax(lorry.LoraLoaderMixin):
    """As much of MiniMax-H3's pipeline as the loader looks at: what a call does not need is not loaded."""

    def __init__(self, **models: WanTransformer3DModel | None) -> None:
        self.transformer = models.get("transformer")
        self.transformer_ref = models.get("transformer_ref")


def test_a_file_goes_to_the_second_denoiser_where_asked_or_where_the_first_is_not_loaded() -> None:
    tensors = {
        key.replace("diffusion_model.", "transformer."): tensor for key, tensor in in_original_names().items()
    }
    both = MiniMax(transformer=tiny_wan(0), transformer_ref=tiny_wan(1))
    both.load_lora_weights(tensors, adapter_name="x")
    both.load_lora_weights(tensors, adapter_name="y", load_into_transformer_ref=True)
    assert both.get_list_adapters() == {"transformer": ["x"], "transformer_ref": ["y"]}
    alone = MiniMax(transformer_ref=tiny_wan(1))
    alone.load_lora_weights(tensors, adapter_name="x")
    assert alone.get_list_adapters() == {"transformer_ref": ["x"]}


def test_layers_of_any_component_are_saved_and_an_argument_for_none_is_named(tmp_path: Path) -> None:
    layers = {"blocks.0.attn1.to_q.lora_A.weight": torch.ones(1, WIDTH)}
    Wan22.save_lora_weights(
        tmp_path, layers, transformer_2_lora_layers=layers, transformer_2_lora_adapter_metadata={"r": 1}
    )
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as file:
        assert sorted(key.partition(".")[0] for key in file.keys()) == ["transformer_2", "unet"]  # noqa: SIM118
        assert "transformer_2.r" in file.metadata()["lora_adapter_metadata"]
    with pytest.raises(
        TypeError, match=r"'transfomer_2_lora_layers'.*Did you mean 'transformer_2_lora_layers'"
    ):
        Wan22.save_lora_weights(tmp_path, transfomer_2_lora_layers=layers)


def test_a_file_for_the_denoiser_that_is_not_loaded_is_refused_where_they_are_for_other_steps(
    tmp_path: Path,
) -> None:
    pipe: Any = Wan22()
    pipe.transformer_2 = None
    path = tmp_path / "style_low_noise.safetensors"
    save_file(in_original_names(), path)
    named = {key.replace("diffusion_model", "transformer_2"): t for key, t in in_original_names().items()}
    for source in (str(path), named):
        with pytest.raises(NothingAppliedError, match="the pipeline has no transformer_2 loaded"):
            pipe.load_lora_weights(source)
    assert pipe.get_list_adapters() == {}
