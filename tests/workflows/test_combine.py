"""Combining files: exact sums over dialects and families, other mixes, and what is said of the error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lorry.adapters.mixing import Method
from lorry.dialects import read_adapter
from lorry.errors import ShapeMismatchError, StateError, UnsupportedAdapterError
from lorry.files import read_adapter_file, read_safetensors, write_safetensors
from lorry.workflows.combine import combine_files
from lorry.workflows.recipes import Recipe
from lorry.workflows.rules import Rule
from workflows.files import WIDE, check_sum, diffusers_file, full_deltas, kohya_file, loha_file, lora


def test_the_sum_of_two_dialects_is_exact_and_in_the_first_ones(tmp_path: Path) -> None:
    one, two = kohya_file(tmp_path / "a.safetensors"), diffusers_file(tmp_path / "b.safetensors")
    out = tmp_path / "c.safetensors"
    report = combine_files([(one, 0.7), (two, -0.4)], out)
    check_sum(full_deltas(out), (full_deltas(one), 0.7), (full_deltas(two), -0.4))
    assert (report.targets, report.shared, dict(report.ranks)) == (4, 3, {4: 1, 7: 3})
    assert report.errors.total < 1e-7
    assert str(report.errors) == "equal, to rounding in float32"
    assert read_adapter(read_adapter_file(out)).dialect == "kohya"
    assert report.size == out.stat().st_size


def test_the_sum_with_a_loha_is_exact_kernels_too(tmp_path: Path) -> None:
    one, two = loha_file(tmp_path / "a.safetensors"), kohya_file(tmp_path / "b.safetensors")
    out = tmp_path / "c.safetensors"
    combine_files([(one, 0.5), (two, 2.0)], out)
    check_sum(full_deltas(out), (full_deltas(one), 0.5), (full_deltas(two), 2.0))


def test_tokens_are_carried_along_or_refused_and_never_lost_without_a_word(tmp_path: Path) -> None:
    one = kohya_file(tmp_path / "a.safetensors")
    tensors = {**read_safetensors(one).tensors, "bundle_emb.toy.clip_l": torch.randn(1, 8)}
    two = write_safetensors(
        tmp_path / "b.safetensors", {key: tensor.clone() for key, tensor in tensors.items()}
    )
    out = tmp_path / "c.safetensors"
    with pytest.raises(UnsupportedAdapterError, match=r"brings tokens along \('toy'\)"):
        combine_files([(one, 1.0), (two, 1.0)], out, dialect="comfyui")
    assert not out.exists()
    combine_files([(one, 1.0), (two, 1.0)], out)
    assert torch.equal(
        read_safetensors(out).tensors["bundle_emb.toy.clip_l"], tensors["bundle_emb.toy.clip_l"]
    )


def test_a_bias_alone_does_not_keep_the_weights_beside_it_from_being_mixed(tmp_path: Path) -> None:
    one, out = kohya_file(tmp_path / "a.safetensors"), tmp_path / "c.safetensors"
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    two = write_safetensors(tmp_path / "b.safetensors", {f"{name}.diff_b": torch.ones(WIDE[0])})
    combine_files([(one, 1.0), (two, 0.5)], out, Recipe(Method.TIES, density=0.25))
    tensors = read_safetensors(out).tensors
    assert tensors[f"{name}.diff"].count_nonzero() == WIDE[0] * WIDE[1] // 4
    assert torch.equal(tensors[f"{name}.diff_b"], torch.full((WIDE[0],), 0.5))


def test_rules_set_factors_by_layer_and_adapter(tmp_path: Path) -> None:
    one, two = kohya_file(tmp_path / "a.safetensors"), kohya_file(tmp_path / "b.safetensors", seed=9)
    out = tmp_path / "c.safetensors"
    combine_files([(one, 0.5), (two, 1.0)], out, Recipe(rules=(Rule.parse("attn1=0,3"),)))
    got, first, second = full_deltas(out), full_deltas(one), full_deltas(two)
    for name in got:
        factors = (0.0, 3.0) if "attn1" in name else (0.5, 1.0)
        check_sum({name: got[name]}, ({name: first[name]}, factors[0]), ({name: second[name]}, factors[1]))


def test_a_layer_at_0_is_left_out_and_nothing_left_is_refused(tmp_path: Path) -> None:
    one, out = kohya_file(tmp_path / "a.safetensors"), tmp_path / "c.safetensors"
    combine_files([(one, 1.0)], out, Recipe(rules=(Rule.parse("text_encoder=0"),)))
    assert not any(key.startswith("lora_te") for key in read_safetensors(out).tensors)
    with pytest.raises(StateError, match="Every factor is 0"):
        combine_files([(one, 0.0)], None)


@pytest.mark.parametrize("recipe", [Recipe(rank=3), Recipe(energy=0.8)])
def test_a_reduced_sum_has_the_error_that_is_printed(tmp_path: Path, recipe: Recipe) -> None:
    one, two = kohya_file(tmp_path / "a.safetensors"), diffusers_file(tmp_path / "b.safetensors")
    exact, cut = tmp_path / "exact.safetensors", tmp_path / "cut.safetensors"
    combine_files([(one, 1.0), (two, 1.0)], exact)
    report = combine_files([(one, 1.0), (two, 1.0)], cut, recipe)
    wanted, got = full_deltas(exact), full_deltas(cut)
    square = sum(float((wanted[name] - got[name]).square().sum()) for name in wanted)
    whole = sum(float(delta.square().sum()) for delta in wanted.values())
    assert report.errors.total == pytest.approx((square / whole) ** 0.5, rel=1e-4)
    for name in wanted:
        s = torch.linalg.svdvals(wanted[name].flatten(1))
        rank = int(torch.linalg.matrix_rank(got[name].flatten(1), rtol=1e-5))
        least = s[rank:].norm() / s.norm()
        assert float((wanted[name] - got[name]).norm() / wanted[name].norm()) == pytest.approx(
            float(least), rel=1e-3
        )
        if recipe.energy is not None:
            assert float(s[:rank].square().sum() / s.square().sum()) >= recipe.energy
            assert float(s[: rank - 1].square().sum() / s.square().sum()) < recipe.energy


@pytest.mark.parametrize("method", [m for m in Method if m is not Method.SUM])
def test_other_mixes_differ_from_the_sum_and_say_by_how_much(tmp_path: Path, method: Method) -> None:
    one, two = kohya_file(tmp_path / "a.safetensors"), diffusers_file(tmp_path / "b.safetensors")
    out, again = tmp_path / "c.safetensors", tmp_path / "d.safetensors"
    recipe = Recipe(method, density=None if method is Method.ORTHOGONAL else 0.6, seed=4)
    report = combine_files([(one, 1.0), (two, 1.0)], out, recipe)
    combine_files([(one, 1.0), (two, 1.0)], again, recipe)
    assert out.read_bytes() == again.read_bytes()
    assert 0.01 < report.errors.total < 2
    assert json.loads(read_safetensors(out).metadata["lorry.combined"])["method"] == method.value


def test_half_precision_stays_and_costs_its_rounding(tmp_path: Path) -> None:
    one = kohya_file(tmp_path / "a.safetensors")
    file = read_safetensors(one)
    half = write_safetensors(tmp_path / "h.safetensors", {k: t.half() for k, t in file.tensors.items()})
    report = combine_files([(half, 0.7), (half, 0.1)], tmp_path / "c.safetensors")
    assert {
        t.dtype for k, t in read_safetensors(tmp_path / "c.safetensors").tensors.items() if "lora_" in k
    } >= {torch.float16}
    assert 1e-5 < report.errors.total < 5e-4
    assert "error 0.000" in str(report)


def test_metadata_that_is_true_of_all_is_kept_and_trigger_words_are_joined(tmp_path: Path) -> None:
    common = {"ss_base_model_version": "sdxl", "ss_network_dim": "4", "sshs_model_hash": "x"}
    one = kohya_file(tmp_path / "a.safetensors", metadata={**common, "modelspec.trigger_phrase": "abra"})
    two = kohya_file(
        tmp_path / "b.safetensors", 9, metadata={**common, "modelspec.trigger_phrase": "dabra", "x": "y"}
    )
    combine_files([(one, 1.0), (two, 0.5)], tmp_path / "c.safetensors")
    text = read_safetensors(tmp_path / "c.safetensors").metadata
    assert text["ss_base_model_version"] == "sdxl"
    assert text["modelspec.trigger_phrase"] == "abra, dabra"
    assert not {"x", "sshs_model_hash"} & set(text)
    assert text["ss_network_dim"] == "8"
    assert json.loads(text["lorry.combined"])["from"] == [
        {"file": "a.safetensors", "factor": 1.0},
        {"file": "b.safetensors", "factor": 0.5},
    ]


def test_adapters_for_different_models_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    one = kohya_file(tmp_path / "a.safetensors")
    two = write_safetensors(tmp_path / "b.safetensors", lora(name, (24, 44), 2, 1))
    with pytest.raises(ShapeMismatchError, match="different base models") as caught:
        combine_files([(one, 1.0), (two, 1.0)], tmp_path / "c.safetensors")
    assert "attn1_to_q" in caught.value.__notes__[0]
    assert not (tmp_path / "c.safetensors").exists()


def test_a_dora_in_both_is_refused_with_a_way_out(tmp_path: Path) -> None:
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {**lora(name, WIDE, 2, 1, 1.0), f"{name}.dora_scale": torch.ones(24, 1)}
    path = write_safetensors(tmp_path / "a.safetensors", tensors)
    with pytest.raises(UnsupportedAdapterError, match=r"DoRA: .*lorry bake"):
        combine_files([(path, 1.0), (path, 1.0)], None)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"density": 0.0}, "density of 0"),
        ({"energy": 1.5}, "energy of 1.5"),
        ({"rank": 2, "energy": 0.5}, "rank and an energy"),
        ({"rank": 0}, "rank of 0"),
    ],
)
def test_numbers_without_sense_are_refused(kwargs: dict[str, float], said: str) -> None:
    with pytest.raises(StateError, match=said):
        Recipe(**kwargs)  # pyright: ignore[reportArgumentType]
