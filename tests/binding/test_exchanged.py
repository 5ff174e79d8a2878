"""Names that are one layer's in the original checkpoint and another one's in diffusers: HunyuanDiT's two norms."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor, nn

from lorry.adapters import Adapter, Entry, form_of
from lorry.algebra import FullDelta
from lorry.binding import bind, in_names_of_model, in_original_names
from lorry.dialects import get_dialect, read_adapter
from lorry.files import TensorFile, read_adapter_file, write_safetensors
from lorry.names import Target
from small import changing, put

WIDTH = 32
ORIGINAL = {"blocks.0.norm2": "blocks.0.norm3", "blocks.0.norm3": "blocks.0.norm2"}
OWN = {name: name for name in ORIGINAL}


def hunyuan() -> nn.Module:
    torch.manual_seed(0)
    return diffusers.HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        hidden_size=WIDTH,
        in_channels=4,
        patch_size=2,
        num_layers=2,
        mlp_ratio=2.0,
        cross_attention_dim=24,
    ).eval()


def file(norm: str, *others: str) -> TensorFile:
    """A difference of one norm, and LoRAs of layers beside it."""
    tensors: dict[str, Tensor] = {f"{norm}.diff": torch.full((WIDTH,), 0.25)}
    for name in others:
        rows = WIDTH * (3 if "qkv" in name else 1)
        tensors |= {f"{name}.lora_down.weight": torch.ones(2, WIDTH)}
        tensors |= {f"{name}.lora_up.weight": torch.ones(rows, 2)}
    return TensorFile(tensors)


def changed_norm(adapter: Adapter, model: nn.Module) -> str:
    """The norm whose weight is another one when an adapter is fused."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "norm" in name}
    put(model, "one", deltas=bind(adapter, {"transformer": model}).deltas["transformer"])
    with changing(model) as (state, undo):
        state.fuse(undo)
    after = model.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == 1
    assert torch.allclose(after[changed[0]], before[changed[0]] + 0.25)
    return changed[0].removesuffix(".weight")


@pytest.mark.parametrize("norm", ORIGINAL)
@pytest.mark.parametrize("prefix", ["diffusion_model.", "base_model.model.", "lora_unet_", ""])
def test_a_norm_beside_original_names_is_the_originals(norm: str, prefix: str) -> None:
    names = [norm, "blocks.0.attn1.Wqkv", "blocks.0.attn2.q_proj", "blocks.1.skip_linear"]
    if prefix == "lora_unet_":
        names = [name.replace(".", "_") for name in names]
    first, fused, query, _ = (prefix + name for name in names)
    tensors = {
        **file(first, query).tensors,
        f"{fused}.lora_down.weight": torch.ones(2, WIDTH),
        f"{fused}.lora_up.weight": torch.ones(3 * WIDTH, 2),
    }
    assert changed_norm(read_adapter(TensorFile(tensors)), hunyuan()) == ORIGINAL[norm]


@pytest.mark.parametrize("norm", OWN)
@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model.", "lycoris_", "lora_unet_"])
def test_a_norm_beside_the_models_own_names_is_the_models(norm: str, prefix: str) -> None:
    names = [norm, "blocks.0.attn1.to_q"]
    if prefix.endswith("_"):
        names = [name.replace(".", "_") for name in names]
    first, query = (prefix + name for name in names)
    assert changed_norm(read_adapter(file(first, query)), hunyuan()) == norm


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("transformer.blocks.0.norm2", "blocks.0.norm2"),
        ("lycoris_blocks_0_norm2", "blocks.0.norm2"),
        ("diffusion_model.blocks.0.norm2", "blocks.0.norm3"),
        ("lora_unet_blocks_0_norm2", "blocks.0.norm3"),
    ],
)
def test_a_file_of_nothing_else_has_the_names_of_its_dialect(key: str, found: str) -> None:
    assert changed_norm(read_adapter(file(key)), hunyuan()) == found


@pytest.mark.parametrize("others", [(), ("blocks.0.attn1.to_q",)])
@pytest.mark.parametrize("dialect", ["kohya", "comfyui", "lycoris"])
def test_both_norms_come_back_from_every_dialect(dialect: str, others: tuple[str, ...]) -> None:
    models = {"transformer": hunyuan()}
    paths = {"blocks.0.norm2": 2.0, "blocks.0.norm3": 3.0, "blocks.1.norm2": 5.0}
    adapter = read_adapter(file("transformer.blocks.1.norm3", *(f"transformer.{name}" for name in others)))
    entries = [
        Entry(Target("transformer", path), FullDelta(torch.full((WIDTH,), value)), ())
        for path, value in paths.items()
    ]
    adapter = Adapter((*adapter.entries, *entries), "test")
    original = get_dialect(dialect).block_names != "diffusers"
    named = in_original_names(adapter, models) if original else in_names_of_model(adapter, models)
    written = {entry.target.path: float(entry.delta.weight().flatten()[0]) for entry in named.entries}
    assert written["blocks.0.norm3" if original else "blocks.0.norm2"] == 2.0
    back = in_names_of_model(read_adapter(get_dialect(dialect).write(named)), models)
    found = {
        entry.target.path: float(entry.delta.weight().flatten()[0])
        for entry in back.entries
        if "norm" in entry.target.path
    }
    assert found == {**paths, "blocks.1.norm3": 0.25}


def test_a_file_read_from_what_is_known_of_its_like_has_the_same_names(tmp_path: Path) -> None:
    path = tmp_path / "norm.safetensors"
    write_safetensors(path, file("lora_unet_blocks_0_norm2").tensors, {})
    first, second = (read_adapter(read_adapter_file(path)) for _ in range(2))
    assert form_of(first) is form_of(second) is not None
    assert changed_norm(second, hunyuan()) == "blocks.0.norm3"
