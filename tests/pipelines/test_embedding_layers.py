"""Layers on embeddings: PEFT's LoRA of them and full differences, against PEFT's own merge."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Gemma3TextConfig, Gemma3TextModel

import lorry
from lorry import attach
from lorry.dialects import get_dialect, read_adapter
from lorry.errors import ShapeMismatchError, StateError, UnsupportedAdapterError
from lorry.files import TensorFile
from models import tiny_flux_pipeline, tiny_sd_pipeline
from snapshots import check_same, snapshot

RANK, ALPHA = 3, 6
IDS = torch.tensor([[0, 3, 3, 7, 1]])


def folder_of_peft(model: nn.Module, folder: Path, targets: list[str], **options: Any) -> nn.Module:
    """Let PEFT tune layers of a copy of `model`, save that into `folder`, and return the copy, merged."""
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, init_lora_weights=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the embedding that it saves along
        tuned = get_peft_model(copy.deepcopy(model), config)
        for name, parameter in tuned.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                nn.init.normal_(parameter, std=0.3)
        tuned.save_pretrained(str(folder))
        return tuned.merge_and_unload()


def answer(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS)[0]


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


CASES = {
    "clip": (tiny_sd_pipeline, "text_encoder", ["token_embedding", "position_embedding", "q_proj"]),
    "t5": (tiny_flux_pipeline, "text_encoder_2", ["shared", "relative_attention_bias", "wo"]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rslora", [False, True])
def test_they_are_what_peft_merges_and_leave_no_bit_behind(case: str, rslora: bool, tmp_path: Path) -> None:
    make, component, targets = CASES[case]
    pipe = attach(make())
    model = getattr(pipe, component)
    merged = folder_of_peft(model, tmp_path / component, targets, use_rslora=rslora)
    tensors = {
        f"{component}.{k}": v
        for k, v in load_file(tmp_path / component / "adapter_model.safetensors").items()
    }
    plain, before = answer(model), snapshot(model)
    report = pipe.load_lora_weights(tmp_path, adapter_name="a")
    saved_along = [one for one in report.ignored if "embedding, which PEFT saves" in one.reason]
    assert report.applied + len(saved_along) == len(tensors) == report.key_count
    assert (len(saved_along) > 0) == any(".base_layer." in key for key in tensors)
    close(answer(model), answer(merged))
    assert (answer(model) - plain).abs().max() > 1e-2
    pipe.fuse_lora()
    close(answer(model), answer(merged))
    pipe.unfuse_lora()
    pipe.set_adapters("a", 0.0)
    close(answer(model), plain)
    pipe.unload_lora_weights()
    check_same(snapshot(model), before)
    assert torch.equal(answer(model), plain)


def embedding_lora(
    model: Any, stem: str = "text_encoder.text_model.embeddings.token_embedding"
) -> dict[str, Tensor]:
    tokens, width = model.get_input_embeddings().weight.shape
    return {
        f"{stem}.lora_embedding_A": torch.randn(RANK, tokens),
        f"{stem}.lora_embedding_B": torch.randn(width, RANK),
    }


def test_several_act_at_their_strengths_unfused_and_fused() -> None:
    pipe = attach(tiny_sd_pipeline())
    layer = pipe.text_encoder.get_input_embeddings()
    base = layer.weight.detach().clone()
    first, second = embedding_lora(pipe.text_encoder), embedding_lora(pipe.text_encoder)
    diff = torch.randn(base.shape)
    pipe.load_lora_weights(first, adapter_name="a")
    pipe.load_lora_weights(second, adapter_name="b")
    pipe.load_lora_weights({"lora_te_text_model_embeddings_token_embedding.diff": diff}, adapter_name="c")
    pipe.set_adapters(["a", "b", "c"], [0.5, -1.0, 0.25])
    one, two = ((b @ a).T for a, b in (first.values(), second.values()))
    expected = base + 0.5 * one - two + 0.25 * diff
    close(layer(IDS), expected[IDS])
    pipe.fuse_lora()
    close(layer(IDS), expected[IDS])
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert torch.equal(layer.weight, base)
    assert type(layer) is nn.Embedding


def test_half_precision_is_kept() -> None:
    pipe = attach(tiny_sd_pipeline().to(torch.bfloat16))
    tensors = embedding_lora(pipe.text_encoder)
    layer = pipe.text_encoder.get_input_embeddings()
    exact = (
        layer.weight.float()
        + (tensors[next(iter(tensors)).replace("_A", "_B")] @ next(iter(tensors.values()))).T
    )
    pipe.load_lora_weights(tensors)
    assert layer(IDS).dtype is torch.bfloat16
    torch.testing.assert_close(layer(IDS).float(), exact[IDS], rtol=2e-2, atol=5e-2)
    pipe.fuse_lora()
    torch.testing.assert_close(layer.weight, exact.bfloat16(), rtol=1e-2, atol=1e-3)


def test_an_embedding_that_multiplies_what_it_looks_up_acts_by_its_weight() -> None:
    config = Gemma3TextConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    model = Gemma3TextModel(config)
    pipe = attach(tiny_sd_pipeline())
    pipe.text_encoder = model
    layer = model.embed_tokens
    tensors = embedding_lora(model, "text_encoder.embed_tokens")
    a, b = tensors.values()
    expected = (layer.weight + (b @ a).T)[IDS] * layer.embed_scale
    pipe.load_lora_weights(tensors)
    close(layer(IDS), expected)


@pytest.mark.parametrize("dialect", ["peft", "kohya", "comfyui", "dotted-kohya", "onetrainer"])
def test_a_dialect_that_carries_them_gives_them_back(dialect: str) -> None:
    tensors = embedding_lora(tiny_sd_pipeline().text_encoder)
    adapter = read_adapter(TensorFile(tensors, {}, "x"))
    there = read_adapter(get_dialect(dialect).write(adapter))
    back = get_dialect("peft").write(there)
    assert set(back.tensors) == {
        key.replace("text_encoder.", "text_encoder.base_model.model.") for key in tensors
    }
    for key, tensor in back.tensors.items():
        assert torch.equal(tensor, tensors[key.replace("base_model.model.", "")])
    assert there.entries[0].delta.rank_scale == 1


def test_peft_loads_what_is_written_for_it(tmp_path: Path) -> None:
    pipe = tiny_sd_pipeline()
    tensors = embedding_lora(pipe.text_encoder, "text_encoder.embeddings.token_embedding")
    save_file(tensors, tmp_path / "a.safetensors")
    lorry.convert(tmp_path / "a.safetensors", tmp_path / "peft", to="peft")
    folder = next(path.parent for path in tmp_path.rglob("adapter_config.json"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that transformers has given up
        theirs = PeftModel.from_pretrained(copy.deepcopy(pipe.text_encoder), str(folder)).merge_and_unload()
    ours = attach(pipe)
    ours.load_lora_weights(tensors)
    close(answer(ours.text_encoder), answer(theirs))


def test_diffusers_dialect_has_no_names_for_them() -> None:
    adapter = read_adapter(TensorFile(embedding_lora(tiny_sd_pipeline().text_encoder), {}, "x"))
    with pytest.raises(UnsupportedAdapterError, match="LoRA: of an embedding"):
        get_dialect("diffusers").write(adapter)


def test_a_dora_of_one_is_refused_by_name(tmp_path: Path) -> None:
    pipe = attach(tiny_sd_pipeline())
    folder_of_peft(pipe.text_encoder, tmp_path / "text_encoder", ["token_embedding"], use_dora=True)
    with pytest.raises(UnsupportedAdapterError, match="a DoRA of an embedding"):
        pipe.load_lora_weights(tmp_path)


def test_a_prepared_text_encoder_learns_tokens_and_carries_layers_on_its_embedding() -> None:
    pipe = attach(tiny_sd_pipeline())
    layer = pipe.text_encoder.get_input_embeddings()
    base, tensors = layer.weight.detach().clone(), embedding_lora(pipe.text_encoder)
    lorry.prepare(pipe.text_encoder)
    token = torch.randn(1, base.shape[1])
    pipe.load_lora_weights({**bias_of_unet(pipe), "bundle_emb.toy.clip_l": token}, adapter_name="token")
    assert torch.equal(layer(torch.tensor(len(base))), token[0])
    pipe.delete_adapters("token")
    assert torch.equal(layer(IDS), base[IDS])
    pipe.load_lora_weights(tensors)
    a, b = tensors.values()
    close(layer(IDS), (base + (b @ a).T)[IDS])


def bias_of_unet(pipe: Any) -> dict[str, Tensor]:
    bias = pipe.unet.mid_block.attentions[0].proj_in.bias
    return {"lora_unet_mid_block_attentions_0_proj_in.diff_b": torch.randn(bias.shape)}


def test_tokens_and_a_layer_on_their_embedding_are_refused_together() -> None:
    pipe = attach(tiny_sd_pipeline())
    before = snapshot(pipe.text_encoder)
    width = pipe.text_encoder.get_input_embeddings().embedding_dim
    layer, token = embedding_lora(pipe.text_encoder), {"bundle_emb.toy.clip_l": torch.randn(1, width)}
    unet = bias_of_unet(pipe)
    with pytest.raises(StateError, match="has a layer on the text encoder's embedding"):
        pipe.load_lora_weights({**unet, **layer, **token})
    check_same(snapshot(pipe.text_encoder), before)
    pipe.load_lora_weights({**unet, **token})
    with pytest.raises(ShapeMismatchError, match="token_embedding"):
        pipe.load_lora_weights(layer)
