"""A LoKr of a fused layer whose rows are no multiple of its factors': it acts exactly, and only a file is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lorry
from lorry.errors import UnsupportedAdapterError
from lorry.files import write_safetensors
from lorry.workflows.approximating import Approximator
from lorry.workflows.convert import convert_file
from pipelines import every

STEM = "lycoris_transformer_blocks_0_attn_to_qkv"
"""SimpleTuner's name, of a Krea 2 that computes with fused layers."""
PARTS = ("to_q", "to_k", "to_v")


def layers_of(pipe: Any) -> list[Any]:
    attention = pipe.transformer.transformer_blocks[0].attn
    return [getattr(attention, name) for name in PARTS]


def tensors_of(whole: Tensor, first: int, *, magnitude: bool) -> dict[str, Tensor]:
    rows, columns = whole.shape
    random = torch.Generator().manual_seed(first)
    made = {
        f"{STEM}.lokr_w1": torch.randn(first, 2, generator=random),
        f"{STEM}.lokr_w2": torch.randn(rows // first, columns // 2, generator=random),
        f"{STEM}.alpha": torch.tensor(1.0),
    }
    scale = torch.rand(1, columns, generator=random) + 0.5
    return {**made, f"{STEM}.dora_scale": scale} if magnitude else made


def changed(whole: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """The fused weight with the LoKr, in float64."""
    total = whole + torch.kron(tensors[f"{STEM}.lokr_w1"].double(), tensors[f"{STEM}.lokr_w2"].double())
    scale = tensors.get(f"{STEM}.dora_scale")
    return total if scale is None else total * scale.double() / total.norm(dim=0, keepdim=True)


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("first", [2, 4, 32])
def test_it_acts_exactly_where_no_border_of_the_parts_is_one_of_its_blocks(
    first: int, magnitude: bool
) -> None:
    pipe = lorry.attach(every.build("Krea2Pipeline"))
    layers = layers_of(pipe)
    before = [layer.weight.detach().clone() for layer in layers]
    whole = torch.cat(before).double()
    assert before[0].shape[0] % (whole.shape[0] // first)
    tensors = tensors_of(whole, first, magnitude=magnitude)
    expected = changed(whole, tensors).split([len(weight) for weight in before])
    report = pipe.load_lora_weights(tensors)
    assert (report.applied, report.key_count, report.targets) == (len(tensors), len(tensors), 3)
    x = torch.randn(3, whole.shape[1])
    for layer, weight in zip(layers, expected, strict=True):
        bias = 0 if layer.bias is None else layer.bias
        torch.testing.assert_close(layer(x), (x.double() @ weight.T + bias).float(), rtol=1e-5, atol=1e-5)
    pipe.fuse_lora()
    for layer, weight in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer.weight.detach(), weight.float(), rtol=1e-6, atol=1e-6)
    pipe.unload_lora_weights()
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, before, strict=True))


def test_a_file_in_other_names_needs_to_be_told_to_approximate(tmp_path: Path) -> None:
    pipe = every.build("Krea2Pipeline")
    whole = torch.cat([layer.weight.detach() for layer in layers_of(pipe)]).double()
    source = write_safetensors(tmp_path / "in.safetensors", tensors_of(whole, 2, magnitude=False))
    models = {"transformer": pipe.transformer}
    with pytest.raises(UnsupportedAdapterError, match=r"3 of 3 layers cannot be written .*wq \(LoKr\)"):
        convert_file(source, tmp_path / "out.safetensors", "kohya", lambda _: models)
    assert not (tmp_path / "out.safetensors").exists()
    approximator = Approximator(rank=32)
    convert_file(source, tmp_path / "out.safetensors", "kohya", lambda _: models, approximator=approximator)
    ours = lorry.attach(pipe)
    ours.load_lora_weights(tmp_path / "out.safetensors")
    ours.fuse_lora()
    now = torch.cat([layer.weight.detach() for layer in layers_of(ours)]).double()
    expected = changed(whole, tensors_of(whole, 2, magnitude=False))
    assert (now - expected).norm() < 1e-4 * (expected - whole).norm()
