"""Which targets of several files are the same module, and which of them a pattern names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from architectures import SD15, SDXL
from lorry.adapters import Entry
from lorry.algebra import LohaDelta
from lorry.binding.original_names import sgm_names
from lorry.dialects import read_adapter
from lorry.errors import StateError
from lorry.files import read_adapter_file
from lorry.names import Target
from lorry.workflows import sgm
from lorry.workflows.matching import common_name, match, with_kernel
from lorry.workflows.rules import Rule, check_rules, number_for
from lorry.workflows.sgm import UnetLayout, diffusers_path, layout_of
from workflows.files import diffusers_file, kohya_file, loha_file


@pytest.mark.parametrize(("config", "layout"), [(SD15, sgm.SD), (SDXL, sgm.SDXL)])
def test_every_original_name_of_a_unet_is_translated(config: dict[str, Any], layout: UnetLayout) -> None:
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**config)
    paths = [path for path, _ in unet.named_modules() if path]
    names = sgm_names(paths)
    assert len(names) > 600
    assert layout_of(names) is layout
    for name, path in names.items():
        assert diffusers_path(name, layout) == path
        flat = name.replace(".", "_")
        assert diffusers_path(flat, layout) == path.replace(".", "_")


def test_spellings_of_one_module_have_one_name() -> None:
    targets = [
        Target("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"),
        Target("denoiser", "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", flat=True),
        Target("unet", "input_blocks_4_1_transformer_blocks_0_attn1_to_q", flat=True),
    ]
    assert len({common_name(target) for target in targets}) == 1
    text = [
        Target("text_encoder", path)
        for path in ("text_model.encoder.layers.0.mlp.fc1", "encoder.layers.0.mlp.fc1")
    ]
    assert len({common_name(target) for target in text}) == 1


def test_files_of_different_dialects_match(tmp_path: Path) -> None:
    paths = [kohya_file(tmp_path / "a.safetensors"), diffusers_file(tmp_path / "b.safetensors")]
    layers = match([read_adapter(read_adapter_file(path)) for path in paths])
    assert [len(layer.present) for layer in layers].count(2) == 3
    assert [layer.target.path for layer in layers if len(layer.present) == 1] == [
        "down_blocks_0_resnets_0_conv1"
    ]


def test_a_loha_of_a_convolution_gets_its_kernel_and_others_stay(tmp_path: Path) -> None:
    adapter = read_adapter(read_adapter_file(loha_file(tmp_path / "a.safetensors")))
    shapes = {layer.name: layer.present[0].delta.shape for layer in match([adapter])}
    assert shapes["denoiser.down_blocks_0_resnets_0_conv1"] == (12, 8, 3, 3)
    loha = LohaDelta(torch.ones(4, 1), torch.ones(1, 18), torch.ones(4, 1), torch.ones(1, 18))
    shortcut = Entry(Target("unet", "down_blocks_0_resnets_0_conv_shortcut", flat=True), loha, ())
    assert with_kernel(shortcut) is loha


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("down_blocks.0", 3),
        ("attn1", 1),
        ("attn1.to_q", 1),
        ("attn*", 3),
        ("convolution", 1),
        ("text_encoder", 1),
        ("attention", 3),
    ],
)
def test_a_pattern_is_whole_segments_of_a_name_a_kind_or_a_component(
    tmp_path: Path, pattern: str, count: int
) -> None:
    layers = match([read_adapter(read_adapter_file(kohya_file(tmp_path / "a.safetensors")))])
    assert sum(Rule(pattern, (1.0,)).matches(layer) for layer in layers) == count


def test_the_last_rule_that_matches_counts_and_has_a_number_for_each_adapter(tmp_path: Path) -> None:
    layers = match([read_adapter(read_adapter_file(kohya_file(tmp_path / "a.safetensors")))])
    rules = [Rule.parse("down_blocks=0.5"), Rule.parse("conv1=2,3")]
    numbers = {layer.name.rpartition("_")[2]: number_for(layer, rules, 1) for layer in layers}
    assert numbers == {"q": 0.5, "k": 0.5, "conv1": 3.0, "proj": None}


def test_rules_that_say_nothing_are_refused(tmp_path: Path) -> None:
    layers = match([read_adapter(read_adapter_file(kohya_file(tmp_path / "a.safetensors")))])
    with pytest.raises(StateError, match=r"No layer has 'atention' in its name. Did you mean 'attention'"):
        check_rules([Rule("atention", (1.0,))], layers)
    with pytest.raises(StateError, match="3 numbers for 2 adapters"):
        check_rules([Rule("attn1", (1.0, 2.0, 3.0))], layers, 2)
    for text in ("attn1", "=2", "attn1=x", "attn1="):
        with pytest.raises(StateError, match="expected PATTERN=NUMBER"):
            Rule.parse(text)
