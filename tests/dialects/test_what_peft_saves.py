"""What PEFT saves of each family is read as what PEFT itself merges."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lorry.dialects import read_adapter
from lorry.files import read_adapter_file


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"to_q": nn.Linear(6, 8), "to_k": nn.Linear(8, 8, bias=False)})
        self.conv = nn.Conv2d(6, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


LINEAR, ALL = ["to_q", "to_k"], ["to_q", "to_k", "conv"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoraConfig", {"r": 2, "lora_alpha": 3, "target_modules": ALL}),
    "lora bias": (
        "LoraConfig",
        {"r": 2, "lora_alpha": 3, "lora_bias": True, "target_modules": ["to_q", "conv"]},
    ),
    "rslora": ("LoraConfig", {"r": 2, "lora_alpha": 3, "use_rslora": True, "target_modules": ALL}),
    "dora": ("LoraConfig", {"r": 2, "lora_alpha": 3, "use_dora": True, "target_modules": ALL}),
    "loha": ("LoHaConfig", {"r": 2, "alpha": 3, "alpha_pattern": {"to_q": 5}, "target_modules": ALL}),
    "loha tucker": ("LoHaConfig", {"r": 2, "alpha": 3, "use_effective_conv2d": True, "target_modules": ALL}),
    "lokr": ("LoKrConfig", {"r": 1, "alpha": 3, "target_modules": ALL, "rank_pattern": {"to_q": 3}}),
    "lokr whole": ("LoKrConfig", {"r": 16, "alpha": 3, "target_modules": ALL}),
    "lokr both": ("LoKrConfig", {"r": 1, "alpha": 3, "decompose_both": True, "target_modules": ALL}),
    "lokr tucker": ("LoKrConfig", {"r": 1, "alpha": 3, "use_effective_conv2d": True, "target_modules": ALL}),
    "oft": ("OFTConfig", {"oft_block_size": 2, "r": 0, "target_modules": ALL}),
    "oft terms": (
        "OFTConfig",
        {"oft_block_size": 2, "r": 0, "num_cayley_neumann_terms": 3, "target_modules": ALL},
    ),
    "oft exact": (
        "OFTConfig",
        {"oft_block_size": 2, "r": 0, "use_cayley_neumann": False, "target_modules": ALL},
    ),
    "oft shared": ("OFTConfig", {"oft_block_size": 2, "r": 0, "block_share": True, "target_modules": ALL}),
    "boft": ("BOFTConfig", {"boft_block_size": 2, "target_modules": LINEAR}),
    "boft of a convolution": ("BOFTConfig", {"boft_block_size": 2, "target_modules": ["conv"]}),
    "ia3": ("IA3Config", {"target_modules": ALL, "feedforward_modules": []}),
    "ia3 inputs": ("IA3Config", {"target_modules": ALL, "feedforward_modules": ["to_q", "conv"]}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_what_peft_saves_is_what_peft_merges(name: str, tmp_path: Path) -> None:
    import peft

    kind, options = CASES[name]
    base = Net()
    model: Any = peft.get_peft_model(copy.deepcopy(base), getattr(peft, kind)(**options))
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.normal_(1.0 if "magnitude" in key or "ia3" in key or "boft_s" in key else 0.0, 0.2)
    model.save_pretrained(str(tmp_path))
    adapter = read_adapter(read_adapter_file(tmp_path))
    assert adapter.dialect == "peft"
    assert not adapter.unknown
    assert {entry.target.path.rpartition(".")[2] for entry in adapter.entries} == set(
        options["target_modules"]
    )
    merged = model.merge_and_unload()
    for entry in adapter.entries:
        mine, theirs = base.get_submodule(entry.target.path), merged.get_submodule(entry.target.path)
        for parameter, tensor in mine.named_parameters():
            part = entry.delta.part(parameter)
            found = None if part is None else part.fitted(tuple(tensor.shape))
            change = 0 if found is None else found.weight(tensor.detach())
            expected = theirs.get_parameter(parameter)
            torch.testing.assert_close(tensor + change, expected, rtol=1e-5, atol=1e-5)
            assert parameter == "bias" or not torch.equal(expected, tensor)
