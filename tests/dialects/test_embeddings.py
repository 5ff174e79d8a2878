"""Textual inversions inside adapters' files: which token, which text encoder, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dialects.conftest import Read
from lorry.adapters import Embedding
from lorry.dialects import get_dialect, read_adapter
from lorry.errors import FormatError, UnsupportedAdapterError
from lorry.files import TensorFile

LORA = {"lora_unet_a.lora_down.weight": (2, 6), "lora_unet_a.lora_up.weight": (8, 2)}


@pytest.mark.parametrize(
    ("kind", "component"),
    [
        ("clip_l", "text_encoder"),
        ("clip_g", "text_encoder_2"),
        ("t5", "text_encoder_2"),
        ("emb_params", "text_encoder"),
        ("string_to_param.*", "text_encoder"),
    ],
)
@pytest.mark.parametrize("name", ["toy", "<toy>", "a.b"])
def test_a_bundled_embedding_names_its_token_and_its_text_encoder(
    kind: str, component: str, name: str, read: Read
) -> None:
    (one,) = read({**LORA, f"bundle_emb.{name}.{kind}": (3, 8)}).embeddings
    assert (one.token, one.component, one.vectors.shape) == (name, component, (3, 8))
    assert one.tokens == (name, f"{name}_1", f"{name}_2")


def test_one_vector_without_an_axis_of_its_own_is_one_token(read: Read) -> None:
    (one,) = read({**LORA, "bundle_emb.toy.clip_l": (8,)}).embeddings
    assert one.vectors.shape == (1, 8)
    assert one.tokens == ("toy",)


@pytest.mark.parametrize("kind", ["clip_l_out", "clip_g_out", "t5_out"])
def test_what_is_added_to_the_output_is_refused_by_name(kind: str, read: Read) -> None:
    with pytest.raises(
        UnsupportedAdapterError, match=rf"bundle_emb\.toy\.{kind}` is added to what the text encoder"
    ):
        read({**LORA, f"bundle_emb.toy.{kind}": (1, 8)})


@pytest.mark.parametrize("shape", [(), (1, 2, 3), (0, 8)])
def test_what_is_no_list_of_vectors_is_refused(shape: tuple[int, ...], read: Read) -> None:
    with pytest.raises(FormatError, match=r"`bundle_emb\.toy\.clip_l`: expected vectors"):
        read({**LORA, "bundle_emb.toy.clip_l": shape})


def test_another_kind_is_unknown(read: Read) -> None:
    assert read({**LORA, "bundle_emb.toy.what": (1, 8), "bundle_emb.what": (1, 8)}).unknown == (
        "bundle_emb.toy.what",
        "bundle_emb.what",
    )


def test_an_adapter_carries_its_embeddings_along() -> None:
    tensors = {key: torch.ones(shape) for key, shape in LORA.items()}
    adapter = read_adapter(TensorFile({**tensors, "bundle_emb.toy.clip_g": torch.ones(1, 8)}))
    assert adapter.key_count == 3
    assert adapter.map_tensors(torch.Tensor.half).embeddings[0].vectors.dtype == torch.float16
    assert adapter.only("text_encoder_2").embeddings == adapter.embeddings
    assert not adapter.only("denoiser").embeddings


@pytest.mark.parametrize("kind", ["clip_l", "clip_g", "t5", "emb_params", "string_to_param.*"])
def test_kohyas_dialect_takes_tokens_along_under_the_names_they_came_with(kind: str) -> None:
    tensors = {key: torch.randn(shape) for key, shape in LORA.items()}
    file = TensorFile({**tensors, f"bundle_emb.a.b.{kind}": torch.randn(2, 8)})
    written = get_dialect("kohya").write(read_adapter(file)).tensors
    assert written.keys() == file.tensors.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in file.tensors.items())


@pytest.mark.parametrize(("component", "kind"), [("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")])
def test_tokens_from_elsewhere_are_named_after_their_text_encoder(component: str, kind: str) -> None:
    adapter = replace(read_adapter(TensorFile({k: torch.ones(s) for k, s in LORA.items()})), embeddings=())
    token = Embedding("<s1>", component, torch.ones(1, 8), "<s1>")
    written = get_dialect("kohya").write(replace(adapter, embeddings=(token,))).tensors
    assert f"bundle_emb.<s1>.{kind}" in written
    lost = replace(adapter, embeddings=(replace(token, component="text_encoder_3"),))
    with pytest.raises(UnsupportedAdapterError, match="'<s1>' is for `text_encoder_3`, which has no name"):
        get_dialect("kohya").write(lost)


def test_a_dialect_without_a_place_for_tokens_refuses_them() -> None:
    tensors = {key: torch.ones(shape) for key, shape in LORA.items()}
    adapter = read_adapter(TensorFile({**tensors, "bundle_emb.toy.clip_l": torch.ones(1, 8)}))
    with pytest.raises(
        UnsupportedAdapterError, match=r"brings tokens along \('toy'\).*'lycoris' has no place.*`--to kohya`"
    ):
        get_dialect("lycoris").write(adapter)
