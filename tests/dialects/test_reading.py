"""Reading is total, pairs by name, and does not look at the order of keys."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dialects.conftest import assert_same_adapter, assert_total, make_file
from lorry.adapters import Adapter
from lorry.algebra import LoraDelta
from lorry.dialects import read_adapter
from lorry.errors import FormatError
from lorry.files import TensorFile, read_header, write_safetensors
from lorry.names import DENOISER, Target

Read = Callable[..., Adapter]
TO_Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def linear(stem: str, rank: int = 2) -> dict[str, tuple[int, ...]]:
    return {f"{stem}.lora_down.weight": (rank, 6), f"{stem}.lora_up.weight": (8, rank)}


def test_linear_and_convolution_layers_are_read_with_their_ranks(read: Read) -> None:
    adapter = read(
        {
            **linear("lora_unet_a", 3),
            "lora_unet_b.lora_down.weight": (4, 6, 1, 1),
            "lora_unet_b.lora_up.weight": (8, 4, 1, 1),
            "lora_unet_c.lora_down.weight": (5, 6, 3, 3),
            "lora_unet_c.lora_up.weight": (8, 5, 1, 1),
            "lora_unet_d.lora_down.weight": (2, 6, 1, 1),
            "lora_unet_d.lora_mid.weight": (2, 2, 3, 3),
            "lora_unet_d.lora_up.weight": (8, 2, 1, 1),
        },
        {"lora_unet_d.alpha": 1.0},
    )
    shapes = {entry.target.path: (entry.delta.shape, entry.delta.rank) for entry in adapter.entries}
    assert shapes == {
        "a": ((8, 6), 3),
        "b": ((8, 6, 1, 1), 4),
        "c": ((8, 6, 3, 3), 5),
        "d": ((8, 6, 3, 3), 2),
    }
    tucker = adapter.entries[3]
    assert isinstance(tucker.delta, LoraDelta)
    assert tucker.delta.mid is not None
    assert tucker.delta.rank_scale == 0.5
    assert len(tucker.keys) == 4


def test_the_factors_are_the_files_own_memory(read: Read) -> None:
    file = make_file(linear("lora_unet_a"))
    delta = read_adapter(file).entries[0].delta
    assert delta.tensors()["down"] is file.tensors["lora_unet_a.lora_down.weight"]
    assert delta.tensors()["up"] is file.tensors["lora_unet_a.lora_up.weight"]


@pytest.mark.parametrize("lost", ["lora_up.weight", "lora_down.weight"])
def test_half_a_layer_is_unknown_with_all_it_has(lost: str, read: Read) -> None:
    shapes = {**linear("lora_unet_a"), **linear("lora_unet_b")}
    del shapes[f"lora_unet_a.{lost}"]
    adapter = read(shapes, {"lora_unet_a.alpha": 1.0})
    assert [entry.target.path for entry in adapter.entries] == ["b"]
    assert len(adapter.unknown) == 2
    assert "lora_unet_a.alpha" in adapter.unknown


def test_a_lone_alpha_and_a_strange_key_are_unknown(read: Read) -> None:
    adapter = read({**linear("lora_unet_a"), "lora_unet_c.what": (3,)}, {"lora_unet_b.alpha": 1.0})
    assert adapter.unknown == ("lora_unet_b.alpha", "lora_unet_c.what")


def test_bookkeeping_is_ignored_with_its_reason(read: Read) -> None:
    adapter = read(
        {
            **linear("lora_unet_a"),
            "_aux.slider": (1,),
            "bundle_emb.toy.string_to_token.*": (1,),
            "text_encoder.text_model.embeddings.position_ids": (1, 77),
        }
    )
    reasons = {ignored.key: ignored.reason for ignored in adapter.ignored}
    assert "slider" in reasons["_aux.slider"]
    assert "textual inversion" in reasons["bundle_emb.toy.string_to_token.*"]
    assert "buffer" in reasons["text_encoder.text_model.embeddings.position_ids"]


def test_ranks_that_disagree_are_refused_with_the_layer(read: Read) -> None:
    with pytest.raises(
        FormatError,
        match=r"test\.safetensors: denoiser\.a \(`lora_unet_a\.lora_down.weight`\): .* rank 2, `up` has rank 3",
    ):
        read({"lora_unet_a.lora_down.weight": (2, 6), "lora_unet_a.lora_up.weight": (8, 3)})


def test_factors_of_whole_numbers_are_refused() -> None:
    tensors = {
        "lora_unet_a.lora_down.weight": torch.ones(2, 6, dtype=torch.int8),
        "lora_unet_a.lora_up.weight": torch.ones(8, 2),
    }
    with pytest.raises(FormatError, match=r"expected factors of floating-point numbers, got torch\.int8"):
        read_adapter(TensorFile(tensors))


def test_the_order_of_keys_changes_nothing() -> None:
    shapes = {
        key: shape
        for i in range(30)
        for key, shape in linear(f"lora_unet_blocks_{i}_to_q", 1 + i % 3).items()
    }
    file = make_file(shapes, {f"lora_unet_blocks_{i}_to_q.alpha": float(1 + i) for i in range(0, 30, 2)})
    whole = read_adapter(file)
    for seed in range(5):
        keys = list(file.tensors)
        random.Random(seed).shuffle(keys)
        shuffled = read_adapter(TensorFile({key: file.tensors[key] for key in keys}))
        assert_same_adapter(whole, shuffled)
        assert [entry.keys for entry in whole.entries] == [entry.keys for entry in shuffled.entries]


def test_the_order_of_keys_decides_neither_between_spellings_nor_the_order_of_layers() -> None:
    shapes = {
        **linear("unet.b"),
        **linear("lora_te_z"),
        **linear("lora_unet_c"),
        **linear("transformer_blocks.0.a"),
    }
    file = make_file(
        {
            **shapes,
            "lora_te_q.lora_up.weight": (2, 2),
            "x.lora_up.weight": (2, 2),
            "_aux.b": (1,),
            "_aux.a": (1,),
        }
    )
    copies = {
        key.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): tensor
        for key, tensor in file.tensors.items()
        if "unet.b" in key
    }
    tensors = {**file.tensors, **copies}
    whole = read_adapter(TensorFile(tensors))
    assert [entry.target for entry in whole.entries] == sorted(entry.target for entry in whole.entries)
    for seed in range(8):
        keys = list(tensors)
        random.Random(seed).shuffle(keys)
        shuffled = read_adapter(TensorFile({key: tensors[key] for key in keys}))
        assert [entry.keys for entry in shuffled.entries] == [entry.keys for entry in whole.entries]
        assert shuffled.ignored == whole.ignored
        assert shuffled.unknown == whole.unknown


def doubled(first: str, second: str, change: float = 0.0) -> TensorFile:
    file = make_file({f"{first}.lora_A.weight": (2, 6), f"{first}.lora_B.weight": (8, 2)})
    copies = {key.replace(first, second): tensor.clone() for key, tensor in file.tensors.items()}
    copies[f"{second}.lora_B.weight"][0, 0] += change
    return TensorFile({**copies, **file.tensors}, source="test.safetensors")


SPELLINGS = [
    ("unet.mid_block.conv_in", "mid_block.conv_in", Target("unet", "mid_block.conv_in")),
    ("mid_block.conv_in", "base_model.model.mid_block.conv_in", Target(DENOISER, "mid_block.conv_in")),
    ("mid_block.conv_in", "lora_unet_mid_block_conv_in", Target(DENOISER, "mid_block.conv_in")),
    ("transformer.a_b.to_q", "lora_unet_a_b_to_q", Target("transformer", "a_b.to_q")),
    ("text_encoder.a.q_proj", "lora_te_a_q_proj", Target("text_encoder", "a.q_proj")),
]


@pytest.mark.parametrize(("first", "second", "target"), SPELLINGS)
def test_two_spellings_of_one_layer_count_once_when_they_agree(
    first: str, second: str, target: Target
) -> None:
    file = doubled(first, second)
    adapter = read_adapter(file)
    assert_total(adapter, file)
    assert [entry.target for entry in adapter.entries] == [target]
    assert len(adapter.ignored) == 2
    assert "the same tensor as `" in adapter.ignored[0].reason


@pytest.mark.parametrize(("first", "second", "target"), SPELLINGS)
def test_two_spellings_of_one_layer_are_refused_when_they_differ(
    first: str, second: str, target: Target
) -> None:
    with pytest.raises(FormatError, match=r"are the same layer in two spellings and hold different"):
        read_adapter(doubled(first, second, change=1e-3))


def test_two_spellings_of_the_same_suffix_count_once(read: Read) -> None:
    file = make_file(linear("unet.a.b"))
    copies = {
        key.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): t.double()
        for key, t in file.tensors.items()
    }
    adapter = read_adapter(TensorFile({**file.tensors, **copies}))
    assert len(adapter.entries) == 1
    assert len(adapter.ignored) == 2


def test_a_bare_layer_beside_two_denoisers_stays_its_own() -> None:
    shapes = {
        f"{prefix}a.lora_{s}.weight": (2, 2)
        for prefix in ("", "transformer.", "transformer_2.")
        for s in "AB"
    }
    assert len(read_adapter(make_file(shapes)).entries) == 3


def test_a_header_alone_gives_the_same_adapter_without_weights(tmp_path: Path) -> None:
    file = doubled("unet.mid_block.conv_in", "mid_block.conv_in")
    path = write_safetensors(
        tmp_path / "x.safetensors", {**file.tensors, "unet.mid_block.conv_in.alpha": torch.tensor(1.0)}
    )
    adapter = read_adapter(read_header(path))
    assert adapter.entries[0].delta.rank_scale == 0.5
    assert adapter.entries[0].delta.tensors()["down"].is_meta
    assert "only headers compared" in adapter.ignored[0].reason
