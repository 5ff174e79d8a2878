"""Files whose like was read before: the same adapter comes out, and nothing of the other file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorry.adapters import Adapter, form_of
from lorry.dialects import read_adapter
from lorry.files import read_safetensors, write_safetensors

LAYERS = ("unet.mid.to_q", "unet.mid.to_k")


def kohya(seed: int, alpha: float = 2.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in LAYERS:
        name = f"lora_unet_{layer.removeprefix('unet.').replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"] = torch.randn(4, 8, generator=generator)
        tensors[f"{name}.lora_up.weight"] = torch.randn(8, 4, generator=generator)
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def diffusers(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{layer}.lora_{side}.weight": torch.randn(shape, generator=generator)
        for layer in LAYERS
        for side, shape in (("A", (4, 8)), ("B", (8, 4)))
    }


def read(
    folder: Path, name: str, tensors: Mapping[str, Tensor], text: Mapping[str, str] | None = None
) -> Adapter:
    return read_adapter(
        read_safetensors(write_safetensors(folder / f"{name}.safetensors", tensors, text or {}))
    )


def scales(adapter: Adapter) -> list[float]:
    return [entry.delta.rank_scale for entry in adapter.entries]


@pytest.mark.parametrize("write", [kohya, diffusers])
def test_a_file_of_a_known_form_has_its_own_weights_text_and_name(
    write: Callable[[int], dict[str, Tensor]], tmp_path: Path
) -> None:
    first = read(tmp_path, "first", write(0), {"format": "pt", "ss_output_name": "first"})
    second = read(tmp_path, "second", write(1), {"format": "pt", "ss_output_name": "second"})
    assert form_of(first) is form_of(second) is not None
    assert second.source.endswith("second.safetensors")
    assert dict(second.metadata) == {"format": "pt", "ss_output_name": "second"}
    fresh = read_adapter(replace(read_safetensors(tmp_path / "second.safetensors"), spans=None))
    assert form_of(fresh) is None
    for got, expected in zip(second.entries, fresh.entries, strict=True):
        assert (got.target, got.keys, got.scale_source) == (
            expected.target,
            expected.keys,
            expected.scale_source,
        )
        assert got.delta.rank_scale == expected.delta.rank_scale
        assert got.delta.tensors().keys() == expected.delta.tensors().keys()
        for name, tensor in expected.delta.tensors().items():
            assert torch.equal(got.delta.tensors()[name], tensor)


def test_other_alphas_are_another_form(tmp_path: Path) -> None:
    first, second = (read(tmp_path, str(alpha), kohya(0, alpha)) for alpha in (2.0, 1.0))
    assert (scales(first), scales(second)) == ([0.5, 0.5], [0.25, 0.25])
    assert form_of(first) is not form_of(second)
    assert form_of(read(tmp_path, "again", kohya(3, 1.0))) is form_of(second)


def test_text_that_says_something_else_of_the_layers_is_another_form(tmp_path: Path) -> None:
    def config(alpha: int) -> dict[str, str]:
        return {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": alpha, "who": alpha})}

    first, second = (read(tmp_path, str(alpha), diffusers(0), config(alpha)) for alpha in (4, 8))
    plain = read(tmp_path, "plain", diffusers(0))
    assert (scales(first), scales(second), scales(plain)) == ([1.0, 1.0], [2.0, 2.0], [1.0, 1.0])
    assert len({form_of(first), form_of(second), form_of(plain)}) == 3
    assert form_of(read(tmp_path, "again", diffusers(1), config(8))) is form_of(second)


def test_an_adapter_that_was_changed_has_no_form(tmp_path: Path) -> None:
    adapter = read(tmp_path, "x", diffusers(0))
    assert form_of(adapter) is not None
    assert form_of(adapter.only("unet")) is None
    assert form_of(adapter.map_tensors(torch.clone)) is None


def test_what_is_left_out_or_compared_is_read_each_time(tmp_path: Path) -> None:
    twice = {**diffusers(0), **{f"base_model.model.{k}": v for k, v in diffusers(0).items()}}
    assert read(tmp_path, "x", twice).ignored
    other = {**diffusers(0), "_aux.slider": torch.zeros(3)}
    adapter = read(tmp_path, "y", other)
    assert adapter.ignored
    assert form_of(adapter) is None
    assert read(tmp_path, "z", {**diffusers(1), "_aux.slider": torch.zeros(3)}).ignored


def test_a_form_holds_no_weights(tmp_path: Path) -> None:
    form = form_of(read(tmp_path, "x", diffusers(0)))
    assert form is not None
    assert all(t.is_meta for entry, _ in form.entries for t in entry.delta.tensors().values())
