"""cloneofsimo's files: layers by position, held against a real file and against today's UNet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dialects.conftest import assert_total
from lorry.dialects import find_dialect, read_adapter
from lorry.dialects._walks import CLASSES, Step, clip_walk, unet_walk
from lorry.errors import FormatError, UnsupportedAdapterError
from lorry.files import TensorFile, read_adapter_file, read_header, read_safetensors

PLAIN = frozenset({"CrossAttention", "Attention", "GEGLU"})


def tensors_of(walk: list[Step], rank: int = 1) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for i, (_, shape, _) in enumerate(walk):
        kernel = shape[2:]
        yield torch.full((shape[0], rank, *(1 for _ in kernel)), float(i + 1)), torch.ones(rank, *shape[1:])


def by_key(component: str, walk: list[Step]) -> dict[str, torch.Tensor]:
    sides = enumerate(tensors_of(walk))
    return {
        f"{component}:{i}:{side}": t
        for i, pair in sides
        for side, t in zip(("up", "down"), pair, strict=True)
    }


def classes(*names: str) -> str:
    return json.dumps(names)


def test_a_real_file_is_read_in_full(shared_dir: Path) -> None:
    path = shared_dir / "samples" / "analog_svd_rank4.safetensors"
    file = read_safetensors(path)
    adapter = read_adapter(file)
    assert adapter.dialect == "cloneofsimo"
    assert_total(adapter, file)
    assert not adapter.unknown
    assert len(adapter.only("unet").entries) == 144
    assert len(adapter.only("text_encoder").entries) == 48
    assert {entry.delta.rank_scale for entry in adapter.entries} == {1.0}
    assert [entry.target for entry in read_adapter(read_header(path)).entries] == [
        e.target for e in adapter.entries
    ]


@pytest.mark.parametrize(("context", "linear"), [(768, False), (1024, True)])
def test_every_step_of_the_walk_is_a_layer_of_the_unet_with_its_shape(context: int, linear: bool) -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=context, use_linear_projection=linear)
    weights = dict(unet.named_parameters())
    for path, shape, _ in unet_walk(CLASSES, context, False):
        weight = weights[f"{path}.weight"].shape
        assert tuple(weight[:2] if weight[2:] == (1, 1) else weight) == shape
    assert len(unet_walk(PLAIN, context, False)) == 144
    inside = [
        n for n, _ in unet.named_modules() if n.endswith(("to_q", "to_k", "to_v", "to_out.0", "net.0.proj"))
    ]
    resnets = [
        n
        for n, _ in unet.named_modules()
        if ".resnets." in n and n.endswith(("conv1", "conv2", "time_emb_proj", "conv_shortcut"))
    ]
    assert sorted(step.path for step in unet_walk(CLASSES, context, False)) == sorted([*inside, *resnets])


def test_the_first_steps_are_those_that_were_measured() -> None:
    steps = [step.path.split("transformer_blocks.0.")[1] for step in unet_walk(PLAIN, 768, False)[:9]]
    assert steps == [
        "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj",
        "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0",
    ]  # fmt: skip
    assert (
        unet_walk(PLAIN, 768, False)[-1].path == "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
    )
    assert clip_walk(12, 768)[0].path == "text_model.encoder.layers.0.self_attn.k_proj"


@pytest.mark.parametrize("context", [768, 1024])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("walked", [PLAIN, PLAIN - {"GEGLU"}, CLASSES])
def test_each_layer_gets_its_name_by_its_position(context: int, last: bool, walked: frozenset[str]) -> None:
    walk = unet_walk(walked, context, last)
    file = TensorFile(by_key("unet", walk), {"unet": classes(*walked)})
    adapter = read_adapter(file)
    assert_total(adapter, file)
    assert {e.target.path: e.delta.tensors()["up"].flatten()[0].item() for e in adapter.entries} == {
        step.path: i + 1 for i, step in enumerate(walk)
    }


def test_embeddings_come_along_and_other_keys_are_unknown() -> None:
    tensors = {**by_key("text_encoder", clip_walk(2, 4)), "<s1>": torch.ones(4), "what": torch.ones(4)}
    file = TensorFile(tensors, {"text_encoder": classes("CLIPAttention"), "<s1>": "<embed>"})
    adapter = read_adapter(file)
    assert_total(adapter, file)
    assert [(one.token, one.component, one.vectors.shape) for one in adapter.embeddings] == [
        ("<s1>", "text_encoder", (1, 4))
    ]
    assert adapter.unknown == ("what",)
    assert len(adapter.entries) == 8


def test_half_a_layer_is_unknown() -> None:
    tensors = by_key("unet", unet_walk(PLAIN, 768, False))
    del tensors["unet:3:down"]
    adapter = read_adapter(TensorFile(tensors, {"unet": classes(*PLAIN)}))
    assert adapter.unknown == ("unet:3:up",)
    assert len(adapter.entries) == 143


def test_a_shape_that_fits_no_walk_is_refused_with_its_position() -> None:
    tensors = by_key("unet", unet_walk(PLAIN, 768, False))
    tensors["unet:4:up"] = torch.ones(320, 1)
    with pytest.raises(
        FormatError,
        match=r"Position 4: expected \(2560, 320\) for `down_blocks.0.*ff.net.0.proj`, got \(320, 320\)",
    ):
        read_adapter(TensorFile(tensors, {"unet": classes(*PLAIN)}))
    with pytest.raises(FormatError, match="Expected 144 layers, got one at position 200"):
        read_adapter(TensorFile({"unet:200:up": torch.ones(2, 1), "unet:200:down": torch.ones(1, 2)}))


def test_classes_of_unknown_order_are_refused_by_name() -> None:
    tensors = by_key("unet", unet_walk(PLAIN, 768, False))
    with pytest.raises(UnsupportedAdapterError, match="has layers of Conv2d by position"):
        read_adapter(TensorFile(tensors, {"unet": classes("Conv2d", "GEGLU")}))
    with pytest.raises(FormatError, match="the metadata `unet` is no JSON"):
        read_adapter(TensorFile(tensors, {"unet": "["}))
    with pytest.raises(FormatError, match="the metadata `unet` is no list"):
        read_adapter(TensorFile(tensors, {"unet": "3"}))


@pytest.mark.parametrize(
    ("component", "walk"),
    [
        ("unet", unet_walk(PLAIN, 768, False)),
        ("unet", unet_walk(PLAIN - {"GEGLU"}, 768, False)),
        ("text_encoder", clip_walk(12, 768)),
        ("text_encoder", clip_walk(23, 1024)),
    ],
)
def test_a_pickled_list_is_read_by_its_shapes(component: str, walk: list[Step], tmp_path: Path) -> None:
    torch.save([tensor for pair in tensors_of(walk) for tensor in pair], tmp_path / "lora.pt")
    file = read_adapter_file(tmp_path / "lora.pt")
    dialect, adapter = find_dialect(file), read_adapter(file)
    assert dialect is not None
    assert dialect.name == "cloneofsimo-pt"
    assert_total(adapter, file)
    found = {
        (e.target.component, e.target.path): e.delta.tensors()["up"].flatten()[0].item()
        for e in adapter.entries
    }
    assert found == {(component, path): i + 1 for i, (path, _, _) in enumerate(walk)}


def test_a_list_with_a_tensor_too_few_leaves_it_unknown(tmp_path: Path) -> None:
    tensors = [tensor for pair in tensors_of(clip_walk(2, 4)) for tensor in pair]
    torch.save(tensors[:-1], tmp_path / "lora.pt")
    assert read_adapter(read_adapter_file(tmp_path / "lora.pt")).unknown == ("14",)
