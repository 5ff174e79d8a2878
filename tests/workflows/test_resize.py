"""Cutting files down: to ranks, shares of energy and sizes, and the curve to choose from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lorry.dialects import read_adapter
from lorry.errors import StateError
from lorry.files import read_adapter_file, read_safetensors, write_safetensors
from lorry.workflows.resize import Budget, resize_file
from lorry.workflows.rules import Rule
from lorry.workflows.trade_off import preview
from workflows.files import full_deltas, kohya_file, loha_file, rand


def ranks_in(path: Path) -> dict[str, int]:
    adapter = read_adapter(read_adapter_file(path))
    return {entry.target.path.rpartition("_")[2]: entry.delta.rank or 0 for entry in adapter.entries}


def energy_kept(before: Path, after: Path) -> dict[str, float]:
    old, new = full_deltas(before), full_deltas(after)
    return {name: 1 - float(((old[name] - new[name]).norm() / old[name].norm()) ** 2) for name in old}


def test_to_a_rank(tmp_path: Path) -> None:
    path, out = kohya_file(tmp_path / "a.safetensors", rank=6), tmp_path / "b.safetensors"
    report = resize_file(path, out, Budget(rank=2))
    assert set(ranks_in(out).values()) == {2}
    old, new = full_deltas(path), full_deltas(out)
    for name, delta in old.items():
        s = torch.linalg.svdvals(delta.flatten(1))
        assert float((delta - new[name]).norm()) == pytest.approx(float(s[2:].norm()), rel=1e-4)
    assert (report.cut, report.targets) == (4, 4)
    assert report.size_after == out.stat().st_size < report.size_before
    assert report.kept == pytest.approx(1 - report.errors.total**2, rel=1e-4)


def test_to_a_share_of_energy(tmp_path: Path) -> None:
    path, out = kohya_file(tmp_path / "a.safetensors", rank=6), tmp_path / "b.safetensors"
    resize_file(path, out, Budget(energy=0.7))
    assert all(kept >= 0.7 for kept in energy_kept(path, out).values())
    assert max(ranks_in(out).values()) < 6


@pytest.mark.parametrize("make", [kohya_file, loha_file])
def test_to_a_size_that_the_file_stays_under_and_comes_near(tmp_path: Path, make: object) -> None:
    path = (
        kohya_file(tmp_path / "a.safetensors", rank=20)
        if make is kohya_file
        else loha_file(tmp_path / "a.safetensors")
    )
    out = tmp_path / "b.safetensors"
    megabytes = 0.6 * path.stat().st_size / 1e6 if make is kohya_file else 0.0026
    report = resize_file(path, out, Budget(megabytes=megabytes))
    assert megabytes * 1e6 - 700 < out.stat().st_size <= megabytes * 1e6
    same_rank = resize_file(path, None, Budget(rank=min(rank for _, rank in report.layers.values())))
    assert report.kept > same_rank.kept


def test_a_size_that_cannot_be_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path, out = kohya_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    with pytest.raises(StateError, match=r"cannot be cut to 0.001 MB: with rank 1 everywhere it has 0.00"):
        resize_file(path, out, Budget(megabytes=0.001))
    assert not out.exists()


def test_layers_by_name_get_ranks_of_their_own(tmp_path: Path) -> None:
    path, out = kohya_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    resize_file(path, out, Budget(rank=3, rules=(Rule.parse("attn1=1"), Rule.parse("convolution=2"))))
    assert ranks_in(out) == {"q": 1, "k": 3, "conv1": 2, "proj": 3}
    resize_file(path, out, Budget(rules=(Rule.parse("attn1=1"),)))
    assert ranks_in(out) == {"q": 1, "k": 4, "conv1": 4, "proj": 4}


def test_a_full_difference_becomes_a_lora_and_a_norm_stays(tmp_path: Path) -> None:
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    tensors = {f"{name}.diff": rand(24, 40, seed=1), f"{name[:-7]}norm.w_norm": rand(24, seed=2)}
    path = write_safetensors(tmp_path / "a.safetensors", tensors)
    report = resize_file(path, tmp_path / "b.safetensors", Budget(rank=2))
    assert report.layers == {"denoiser.down_blocks_0_attentions_0_proj_in": (24, 2)}
    assert ranks_in(tmp_path / "b.safetensors") == {"in": 2, "norm": 0}


def test_metadata_says_how_it_was_cut_and_what_the_rank_is_now(tmp_path: Path) -> None:
    text = {"ss_network_dim": "4", "ss_output_name": "a"}
    path, out = kohya_file(tmp_path / "a.safetensors", metadata=text), tmp_path / "b.safetensors"
    resize_file(path, out, Budget(rank=2), dtype="bfloat16")
    file = read_safetensors(out)
    assert json.loads(file.metadata["lorry.resized"]) == {"rank": 2}
    assert (file.metadata["ss_output_name"], file.metadata["ss_network_dim"]) == ("a", "2")
    assert {t.dtype for t in file.tensors.values() if t.ndim} == {torch.bfloat16}


def test_the_curve_tells_what_the_cut_then_keeps(tmp_path: Path) -> None:
    path = kohya_file(tmp_path / "a.safetensors", rank=8)
    curve = preview(path)
    assert {point.way for point in curve.points} == {"rank", "energy", "size"}
    for point in curve.points:
        budget = {
            "rank": lambda n: Budget(rank=int(n)),
            "energy": lambda n: Budget(energy=n),
            "size": lambda n: Budget(megabytes=n),
        }[point.way](point.setting)
        report = resize_file(path, None, budget)
        assert report.kept == pytest.approx(point.kept, abs=0.05 if point.way == "size" else 1e-6)
        assert report.size_after / 1e6 == pytest.approx(point.megabytes, abs=2e-3)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({}, "got none of them"),
        ({"rank": 1, "energy": 0.5}, "got rank and energy"),
        ({"rank": 0}, "rank of 0"),
        ({"energy": 0.0}, "energy of 0"),
        ({"rules": (Rule("x", (1.5,)),)}, "rank of 1 or more"),
    ],
)
def test_budgets_without_sense_are_refused(kwargs: dict[str, int], said: str) -> None:
    with pytest.raises(StateError, match=said):
        Budget(**kwargs)  # pyright: ignore[reportArgumentType]
