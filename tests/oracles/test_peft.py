"""PEFT trains each of its kinds; what its forward computes is what its folder does here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch

from lorry.files import read_safetensors
from lorry.workflows.convert import convert_file
from oracles.net import Net, Parameters, check_loads_as, computed

peft: Any = pytest.importorskip("peft", reason="needs peft (the extra `test`)")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's, of layers without a bias and of slow code

LINEAR = ["to_q", "to_k", "to_v"]
ALL = [*LINEAR, "conv", "point", "strided"]
WITH_BIAS = ["to_k", "to_v", "conv", "strided"]
EXACT = {"oft_block_size": 4, "r": 0, "use_cayley_neumann": False}


class Case(NamedTuple):
    kind: str
    targets: list[str]
    options: Mapping[str, Any] = MappingProxyType({})


CASES = {
    "lora": Case("LoraConfig", ALL),
    "lora of other ranks": Case(
        "LoraConfig", ALL, {"rank_pattern": {"to_q": 2, "conv": 3}, "alpha_pattern": {"to_v": 7}}
    ),
    "rslora": Case("LoraConfig", ALL, {"use_rslora": True}),
    "lora with a bias": Case("LoraConfig", WITH_BIAS, {"lora_bias": True}),
    "dora": Case("LoraConfig", ALL, {"use_dora": True}),
    "all biases": Case("LoraConfig", WITH_BIAS, {"bias": "all"}),
    "biases of its layers": Case("LoraConfig", WITH_BIAS, {"bias": "lora_only"}),
    "whole modules": Case("LoraConfig", LINEAR, {"modules_to_save": ["conv", "norm"]}),
    "loha": Case("LoHaConfig", ALL),
    "loha tucker": Case("LoHaConfig", ALL, {"use_effective_conv2d": True}),
    "lokr": Case("LoKrConfig", ALL, {"rank_pattern": {"to_q": 1}}),
    "lokr whole": Case("LoKrConfig", ALL, {"r": 64}),
    "lokr both": Case("LoKrConfig", ALL, {"decompose_both": True}),
    "lokr tucker": Case("LoKrConfig", ALL, {"use_effective_conv2d": True}),
    "oft": Case("OFTConfig", [*LINEAR, "point"], {"oft_block_size": 4, "r": 0}),
    "oft of 3 terms": Case("OFTConfig", LINEAR, {"oft_block_size": 4, "r": 0, "num_cayley_neumann_terms": 3}),
    "oft exact": Case("OFTConfig", [*LINEAR, "point"], EXACT),
    "oft of one block": Case("OFTConfig", LINEAR, {**EXACT, "block_share": True}),
    "oft with a limit": Case("OFTConfig", LINEAR, {**EXACT, "coft": True, "eps": 0.05}),
    "boft": Case("BOFTConfig", LINEAR, {"boft_block_size": 4}),
    "boft of a convolution": Case("BOFTConfig", ["conv"], {"boft_block_size": 4}),
    "boft of stages": Case("BOFTConfig", LINEAR, {"boft_block_size": 4, "boft_n_butterfly_factor": 2}),
    "ia3": Case("IA3Config", ALL, {"feedforward_modules": []}),
    "ia3 on inputs": Case("IA3Config", ALL, {"feedforward_modules": ["to_q", "conv"]}),
    "vera": Case("VeraConfig", LINEAR, {"r": 6}),
    "hra": Case("HRAConfig", ALL),
    "hra orthogonal": Case("HRAConfig", ALL, {"apply_GS": True}),
}
ALPHAS = {"LoraConfig": "lora_alpha", "LoHaConfig": "alpha", "LoKrConfig": "alpha"}


def train(case: Case, folder: Path) -> Parameters:
    """Write a folder of a case, and return what its forward computes."""
    defaults: dict[str, Any] = {} if case.kind in ("IA3Config", "BOFTConfig") else {"r": 4}
    if case.kind in ALPHAS:
        defaults[ALPHAS[case.kind]] = 3
    config = getattr(peft, case.kind)(**{**defaults, **case.options, "target_modules": case.targets})
    model = peft.get_peft_model(Net(), config)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            around = any(word in name for word in ("magnitude", "ia3", "boft_s", "modules_to_save", "bias"))
            parameter.data = parameter.data * around + (0.1 if "oft" in name else 0.2) * noise
    model.eval()
    model.save_pretrained(str(folder))
    return computed(model.base_model.model)


@pytest.mark.parametrize("name", CASES)
def test_a_folder_computes_what_peft_trained(name: str, tmp_path: Path) -> None:
    check_loads_as(str(tmp_path), train(CASES[name], tmp_path))


@pytest.mark.parametrize("name", ["all biases", "biases of its layers", "whole modules", "lora with a bias"])
def test_whole_tensors_and_biases_are_written_as_peft_saves_and_reads_them(name: str, tmp_path: Path) -> None:
    expected = train(CASES[name], tmp_path / "trained")
    convert_file(tmp_path / "trained", tmp_path / "written", "peft")
    written = tmp_path / "written" / "transformer"
    found, first = (
        read_safetensors(folder / "adapter_model.safetensors").tensors
        for folder in (written, tmp_path / "trained")
    )
    assert found.keys() == first.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in first.items())
    loaded = peft.PeftModel.from_pretrained(Net(), str(written)).eval()
    theirs = computed(loaded.base_model.model)
    assert theirs.keys() == expected.keys()
    for parameter, tensor in expected.items():
        torch.testing.assert_close(theirs[parameter], tensor)


def test_a_config_is_made_for_whole_tensors_that_came_without_one(tmp_path: Path) -> None:
    expected = train(CASES["whole modules"], tmp_path / "trained")
    for name in ("adapter_config.json", "README.md"):
        (tmp_path / "trained" / name).unlink(missing_ok=True)
    convert_file(tmp_path / "trained", tmp_path / "written", "peft")
    config = json.loads((tmp_path / "written" / "transformer" / "adapter_config.json").read_text("utf-8"))
    assert config["modules_to_save"] == ["conv", "group_norm", "norm"]
    assert config["target_modules"] == sorted(f"attn.{name}" for name in LINEAR)
    loaded = peft.PeftModel.from_pretrained(Net(), str(tmp_path / "written" / "transformer")).eval()
    for parameter in ("conv.weight", "conv.bias", "norm.weight"):
        torch.testing.assert_close(computed(loaded.base_model.model)[parameter], expected[parameter])
