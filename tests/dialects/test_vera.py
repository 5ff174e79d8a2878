"""VeRA in PEFT's folders: there and back, loaded by PEFT itself, and refused where one config cannot tell of it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel, VeraConfig, get_peft_model
from torch import nn

from lorry.adapters import Adapter, Entry
from lorry.algebra import VeraDelta
from lorry.dialects import get_dialect, read_adapter
from lorry.errors import UnsupportedAdapterError
from lorry.files import read_adapter_file
from lorry.files.folders import write_folders
from lorry.names import Target


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x)))


def vera(seed: int, shared: VeraDelta | None = None) -> VeraDelta:
    random = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    a, b = (noise(2, 8), noise(8, 2)) if shared is None else (shared.shared_a, shared.shared_b)
    return VeraDelta(noise(8), noise(2), a, b)


def adapter(**deltas: VeraDelta) -> Adapter:
    return Adapter(tuple(Entry(Target("unet", path), delta, ()) for path, delta in deltas.items()), "test")


def test_what_is_written_is_read_again_bit_for_bit_and_the_shared_matrices_stand_once() -> None:
    first = vera(0)
    file = get_dialect("peft").write(adapter(a=first, b=vera(1, first)))
    assert sorted(file.tensors) == [
        *("unet.base_model.model.a.vera_lambda_b", "unet.base_model.model.a.vera_lambda_d"),
        *("unet.base_model.model.b.vera_lambda_b", "unet.base_model.model.b.vera_lambda_d"),
        *("unet.base_model.vera_A", "unet.base_model.vera_B"),
    ]
    again = read_adapter(file)
    assert again.unknown == again.ignored == ()
    found = {str(entry.target): entry.delta for entry in again.entries}
    for path, delta in (("a", first), ("b", vera(1, first))):
        got = found[f"unet.{path}"].tensors()
        assert all(torch.equal(tensor, got[name]) for name, tensor in delta.tensors().items())
    assert get_dialect("peft").write(again).tensors.keys() == file.tensors.keys()


def test_peft_loads_the_folder_and_computes_the_same(tmp_path: Path) -> None:
    base = Small()
    config = VeraConfig(r=2, target_modules=["a", "b"], save_projection=True)
    trained = get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "vera_lambda" in name:
                parameter.normal_()
    trained.save_pretrained(str(tmp_path / "theirs"))
    adapter = read_adapter(read_adapter_file(tmp_path / "theirs"))
    moved = Adapter(
        tuple(Entry(Target("unet", entry.target.path), entry.delta, ()) for entry in adapter.entries), "test"
    )
    write_folders(tmp_path / "ours", get_dialect("peft").write(moved))
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "ours" / "unet"))
    x = torch.randn(3, 6)
    assert not torch.allclose(trained(x), base(x), atol=1e-3)
    assert torch.equal(loaded(x), trained(x))


def test_layers_of_other_shared_matrices_and_of_a_second_component_are_refused() -> None:
    with pytest.raises(UnsupportedAdapterError, match=r"unet\.b \(VeRA: shared matrices of another VeRA\)"):
        get_dialect("peft").write(adapter(a=vera(0), b=vera(1)))
    first = vera(0)
    entries = tuple(Entry(Target(name, "a"), first, ()) for name in ("unet", "text_encoder"))
    with pytest.raises(UnsupportedAdapterError, match=r"text_encoder\.a \(VeRA: in a second component"):
        get_dialect("peft").write(Adapter(entries, "test"))


@pytest.mark.parametrize("dialect", ["kohya", "lycoris", "comfyui", "diffusers"])
def test_dialects_without_names_for_it_refuse_it(dialect: str) -> None:
    with pytest.raises(UnsupportedAdapterError, match=r"a \(VeRA\)"):
        get_dialect(dialect).write(adapter(a=vera(0)))
