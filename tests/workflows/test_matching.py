"""Which targets of several files are the same module, and which of them a pattern names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from architectures import SD15, SDXL
from lorry.adapters import Entry
from lorry.algebra import DoraDelta, LohaDelta
from lorry.binding.original_names import sgm_names
from lorry.dialects import read_adapter
from lorry.errors import StateError, UnsupportedAdapterError
from lorry.files import read_adapter_file
from lorry.names import Target
from lorry.workflows import sgm
from lorry.workflows.combine import combine_files
from lorry.workflows.matching import common_name, match, with_kernel
from lorry.workflows.rules import Rule, check_rules, number_for
from lorry.workflows.sgm import UnetLayout, diffusers_path, layout_of
from lorry.workflows.storing import write_adapter
from models import as_adapter, random_delta
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


FLUX = {"double_blocks.0.img_attn.qkv": (9216, 3072), "single_blocks.1.linear1": (21504, 3072)}
FLUX |= {"single_blocks.1.linear2": (3072, 15360)}
PARTS = {
    "transformer_blocks.0.attn.to_q": ("double_blocks.0.img_attn.qkv", 0, 3072),
    "transformer_blocks.0.attn.to_k": ("double_blocks.0.img_attn.qkv", 3072, 6144),
    "transformer_blocks.0.attn.to_v": ("double_blocks.0.img_attn.qkv", 6144, 9216),
    "single_transformer_blocks.1.attn.to_q": ("single_blocks.1.linear1", 0, 3072),
    "single_transformer_blocks.1.attn.to_k": ("single_blocks.1.linear1", 3072, 6144),
    "single_transformer_blocks.1.attn.to_v": ("single_blocks.1.linear1", 6144, 9216),
    "single_transformer_blocks.1.proj_mlp": ("single_blocks.1.linear1", 9216, 21504),
    "single_transformer_blocks.1.proj_out": ("single_blocks.1.linear2", 0, 3072),
}


def flux_files(folder: Path) -> tuple[Path, Path]:
    """An adapter of Flux in the original names, and another one in diffusers'."""
    own = as_adapter(
        {name: random_delta(shape, n) for n, (name, shape) in enumerate(FLUX.items())}, "transformer"
    )
    parts = {path: (last - first, FLUX[whole][1]) for path, (whole, first, last) in PARTS.items()}
    other = as_adapter({path: random_delta(shape, 9) for path, shape in parts.items()}, "transformer")
    return (
        write_adapter(own, folder / "own.safetensors", "kohya"),
        write_adapter(other, folder / "other.safetensors", "diffusers"),
    )


def acted(path: Path, inputs: dict[int, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What each layer of a file adds to its output, by the layer's name in diffusers, with `_` for `.`."""
    adapter = read_adapter(read_adapter_file(path))
    pairs = {e.target.path.replace(".", "_"): e.delta.exact_factors(torch.float32) for e in adapter.entries}
    return {name: p.scale * p.up @ (p.down @ inputs[p.down.shape[1]]) for name, p in pairs.items() if p}


def test_fused_layers_of_original_names_are_taken_apart_beside_diffusers_names(tmp_path: Path) -> None:
    own, other = flux_files(tmp_path)
    one, two = (read_adapter(read_adapter_file(path)) for path in (own, other))
    layers = {layer.name: layer for layer in match([one, two])}
    assert set(layers) == {f"denoiser.{path.replace('.', '_')}" for path in PARTS}
    assert all(len(layer.present) == 2 for layer in layers.values())
    assert len(match([one, one])) == len(FLUX)
    combine_files([(own, 0.7), (other, 0.5)], tmp_path / "mix.safetensors", dtype="float32")
    inputs = {
        size: torch.randn(size, generator=torch.Generator().manual_seed(size)) for size in (3072, 15360)
    }
    first, second = acted(own, inputs), acted(other, inputs)
    mixed = acted(tmp_path / "mix.safetensors", inputs)
    assert set(mixed) == {path.replace(".", "_") for path in PARTS}
    for path, (whole, start, stop) in PARTS.items():
        flat = path.replace(".", "_")
        wanted = 0.7 * first[whole.replace(".", "_")][start:stop] + 0.5 * second[flat]
        torch.testing.assert_close(mixed[flat], wanted, rtol=1e-4, atol=1e-4)


def test_a_family_that_cannot_be_cut_is_refused_by_name(tmp_path: Path) -> None:
    own, other = flux_files(tmp_path)
    one, two = (read_adapter(read_adapter_file(path)) for path in (own, other))
    fused = one.entries[0]
    dora = DoraDelta(fused.delta, torch.ones(1, 3072), on_input=True)
    with pytest.raises(UnsupportedAdapterError, match="cannot be cut") as raised:
        match([replace(one, entries=(replace(fused, delta=dora),)), two])
    assert "img_attn_qkv" in raised.value.__notes__[0]
