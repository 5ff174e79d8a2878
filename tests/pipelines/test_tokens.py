"""Tokens that come with an adapter: what `load_textual_inversion` would make of them, and off again bit for bit."""

from __future__ import annotations

from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor

from lorry import attach
from lorry.errors import ShapeMismatchError, StateError, UnknownTargetError
from models import tiny_flux_pipeline, tiny_sd_pipeline, tiny_sdxl_pipeline
from snapshots import check_same, snapshot

PROMPT = "a toy and a toy cat"


def unet_lora(pipe: Any) -> dict[str, Tensor]:
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    down, up = torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2)
    return {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}


def vectors(encoder: Any, count: int = 1) -> Tensor:
    return torch.randn(count, encoder.get_input_embeddings().embedding_dim)


def answers(pipe: Any, prompt: str = PROMPT) -> list[Tensor]:
    with torch.no_grad():
        found = pipe.encode_prompt(
            prompt=prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    return [tensor for tensor in found if tensor is not None]


def state_of(pipe: Any) -> dict[str, Any]:
    names = [name for name in ("text_encoder", "text_encoder_2") if getattr(pipe, name, None) is not None]
    return {name: snapshot(getattr(pipe, name)) for name in names}


@pytest.mark.parametrize("count", [1, 3])
def test_a_token_is_what_load_textual_inversion_makes_of_it(count: int) -> None:
    pipe, theirs = attach(tiny_sd_pipeline()), tiny_sd_pipeline()
    toy = vectors(pipe.text_encoder, count)
    plain = answers(pipe)
    theirs.load_textual_inversion(toy, token="toy")
    report = pipe.load_lora_weights({**unet_lora(pipe), "bundle_emb.toy.clip_l": toy})
    assert (report.applied, report.key_count) == (3, 3)
    assert f"text_encoder: the token 'toy' of {count} vectors" in str(report)
    for got, expected, before in zip(answers(pipe), answers(theirs), plain, strict=True):
        assert torch.equal(got, expected)
        assert not torch.equal(got, before)
    assert len(pipe.tokenizer) == len(theirs.tokenizer)
    weight, expected = (p.text_encoder.get_input_embeddings().weight for p in (pipe, theirs))
    assert torch.equal(weight, expected)
    assert pipe.text_encoder.config.vocab_size == theirs.text_encoder.config.vocab_size


@pytest.mark.parametrize("leave", ["unload", "delete"])
def test_it_leaves_no_bit_behind(leave: str) -> None:
    pipe = attach(tiny_sdxl_pipeline())
    first, second = pipe.text_encoder, pipe.text_encoder_2
    plain, sizes = answers(pipe), (first.config.vocab_size, second.config.vocab_size)
    tokenizers, before = (pipe.tokenizer, pipe.tokenizer_2), state_of(pipe)
    tensors = {"bundle_emb.toy.clip_l": vectors(first, 2), "bundle_emb.toy.clip_g": vectors(second, 2)}
    pipe.load_lora_weights({**unet_lora(pipe), **tensors}, adapter_name="a")
    assert not all(torch.equal(a, b) for a, b in zip(answers(pipe), plain, strict=True))
    pipe.unload_lora_weights() if leave == "unload" else pipe.delete_adapters("a")
    assert (pipe.tokenizer, pipe.tokenizer_2) == tokenizers
    assert pipe.tokenizer is tokenizers[0]
    for name, taken in before.items():
        check_same(snapshot(getattr(pipe, name)), taken)
    assert all(torch.equal(a, b) for a, b in zip(answers(pipe), plain, strict=True))
    assert (first.config.vocab_size, second.config.vocab_size) == sizes
    assert not [name for name in vars(pipe) if name.startswith("_lorry")]


def test_adapters_with_tokens_go_in_any_order() -> None:
    pipe = attach(tiny_sd_pipeline())
    before, weights = state_of(pipe), {name: vectors(pipe.text_encoder, 2) for name in ("toy", "dog")}
    for name, rows in weights.items():
        pipe.load_lora_weights({**unet_lora(pipe), f"bundle_emb.{name}.clip_l": rows}, adapter_name=name)
    pipe.delete_adapters("toy")
    number = pipe.tokenizer.convert_tokens_to_ids("dog_1")
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[number], weights["dog"][1])
    assert "toy" not in pipe.tokenizer.get_vocab()
    pipe.delete_adapters("dog")
    check_same(snapshot(pipe.text_encoder), before["text_encoder"])


def test_a_swap_in_place_brings_the_new_tokens() -> None:
    pipe = attach(tiny_sd_pipeline())
    for name in ("toy", "dog"):
        tensors = {**unet_lora(pipe), f"bundle_emb.{name}.clip_l": vectors(pipe.text_encoder)}
        pipe.load_lora_weights(tensors, adapter_name="a", hotswap=name == "dog")
    assert "dog" in pipe.tokenizer.get_vocab()
    assert "toy" not in pipe.tokenizer.get_vocab()


def test_a_model_that_was_cast_meanwhile_has_its_own_rows_back_as_cast() -> None:
    pipe, plain = attach(tiny_sd_pipeline()), tiny_sd_pipeline().text_encoder.half()
    pipe.load_lora_weights({**unet_lora(pipe), "bundle_emb.toy.clip_l": vectors(pipe.text_encoder)})
    pipe.text_encoder.half()
    pipe.unload_lora_weights()
    got, expected = (model.get_input_embeddings().weight for model in (pipe.text_encoder, plain))
    assert torch.equal(got, expected)


@pytest.mark.parametrize("spare", [0, 5])
def test_a_t5_has_spare_rows_that_come_back(spare: int) -> None:
    """A T5 has more rows than its tokenizer has tokens, and the first of them are the first new tokens'."""
    pipe = attach(tiny_flux_pipeline())
    t5 = pipe.text_encoder_2
    t5.resize_token_embeddings(len(pipe.tokenizer_2) + spare)
    before = snapshot(t5)
    toy = vectors(t5, 3)
    attn = pipe.transformer.transformer_blocks[0].attn.to_q
    layer = {
        "lora_A.weight": torch.randn(2, attn.in_features),
        "lora_B.weight": torch.randn(attn.out_features, 2),
    }
    lora = {f"transformer.transformer_blocks.0.attn.to_q.{side}": tensor for side, tensor in layer.items()}
    report = pipe.load_lora_weights({**lora, "bundle_emb.toy.t5": toy})
    assert [one.component for one in report.embeddings] == ["text_encoder_2"]
    numbers = [pipe.tokenizer_2.convert_tokens_to_ids(name) for name in ("toy", "toy_1", "toy_2")]
    assert torch.equal(t5.get_input_embeddings().weight[numbers], toy)
    assert t5.get_input_embeddings().weight.shape[0] == max(
        len(pipe.tokenizer_2), len(pipe.tokenizer_2) - 3 + spare
    )
    pipe.unload_lora_weights()
    check_same(snapshot(t5), before)


def unchanged_after(pipe: Any, tensors: dict[str, Tensor], error: type[Exception], match: str) -> None:
    before, tokenizer, unet = state_of(pipe), pipe.tokenizer, snapshot(pipe.unet)
    with pytest.raises(error, match=match):
        pipe.load_lora_weights({**unet_lora(pipe), **tensors})
    check_same(snapshot(pipe.text_encoder), before["text_encoder"])
    check_same(snapshot(pipe.unet), unet)
    assert pipe.tokenizer is tokenizer


def test_what_does_not_fit_changes_nothing() -> None:
    pipe = attach(tiny_sd_pipeline())
    width = vectors(pipe.text_encoder).shape[1]
    unchanged_after(
        pipe,
        {"bundle_emb.toy.clip_l": torch.randn(1, width + 1)},
        ShapeMismatchError,
        "the token 'toy' has vectors",
    )
    unchanged_after(
        pipe,
        {"bundle_emb.toy.clip_l": torch.randn(1, width), "bundle_emb.dog.other": torch.randn(1)},
        UnknownTargetError,
        "bundle_emb.dog.other",
    )
    unchanged_after(pipe, {"bundle_emb.a.clip_l": torch.randn(1, width)}, StateError, "The token 'a'")
    unchanged_after(pipe, {"bundle_emb.toy.clip_g": torch.randn(1, width + 1)}, UnknownTargetError, "clip_g")


def test_a_second_adapter_with_the_same_token_is_refused() -> None:
    pipe = attach(tiny_sd_pipeline())
    tensors = {"bundle_emb.toy.clip_l": vectors(pipe.text_encoder)}
    pipe.load_lora_weights({**unet_lora(pipe), **tensors}, adapter_name="a")
    with pytest.raises(StateError, match="The token 'toy', which an adapter brings along for text_encoder"):
        pipe.load_lora_weights({**unet_lora(pipe), **tensors}, adapter_name="b")
    assert pipe.get_list_adapters() == {"unet": ["a"]}
    assert "toy" in pipe.tokenizer.get_vocab()


def test_tokens_that_somebody_else_added_since_are_not_thrown_away() -> None:
    pipe = attach(tiny_sd_pipeline())
    pipe.load_lora_weights({**unet_lora(pipe), "bundle_emb.toy.clip_l": vectors(pipe.text_encoder)})
    pipe.load_textual_inversion(vectors(pipe.text_encoder), token="dog")
    with pytest.raises(StateError, match="unload_textual_inversion"):
        pipe.unload_lora_weights()
    assert pipe.get_active_adapters() == ["default_0"]
    pipe.unload_textual_inversion("dog")


def test_rows_that_somebody_else_changed_since_are_not_cut() -> None:
    pipe = attach(tiny_sd_pipeline())
    pipe.load_lora_weights({**unet_lora(pipe), "bundle_emb.toy.clip_l": vectors(pipe.text_encoder)})
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer) + 3)
    with pytest.raises(StateError, match="rows, and had"):
        pipe.delete_adapters("default_0")
    assert pipe.get_active_adapters() == ["default_0"]


def test_without_its_text_encoder_a_token_is_ignored_with_the_reason() -> None:
    pipe = attach(tiny_sd_pipeline())
    tensors = {**unet_lora(pipe), "bundle_emb.toy.clip_l": vectors(pipe.text_encoder)}
    pipe.text_encoder = None
    report = pipe.load_lora_weights(tensors)
    assert [ignored.reason for ignored in report.ignored] == ["the pipeline has no text_encoder loaded"]


def test_tokens_go_when_the_embedding_is_here_again_and_not_before() -> None:
    pipe = attach(tiny_sd_pipeline())
    plain = answers(pipe)
    pipe.load_lora_weights({**unet_lora(pipe), "bundle_emb.toy.clip_l": vectors(pipe.text_encoder)})
    learned = answers(pipe)
    accelerate.cpu_offload(pipe.text_encoder, execution_device=torch.device("cpu"))
    with pytest.raises(StateError, match=r"or lose them.*`pipe\.remove_all_hooks\(\)`"):
        pipe.unload_lora_weights()
    assert all(map(torch.equal, answers(pipe), learned))
    pipe.remove_all_hooks()
    pipe.unload_lora_weights()
    assert all(map(torch.equal, answers(pipe), plain))
