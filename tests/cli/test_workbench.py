"""The commands that compute with adapter files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from cli.runs import lorry_says
from lorry.files import read_safetensors, write_safetensors


def check_picture(path: Path) -> None:
    """Raise where there is no picture, or one of a single colour."""
    with Image.open(path) as picture:
        colours = picture.convert("RGB").getcolors(picture.width * picture.height)
        assert picture.width > 400
        assert colours is None or len(colours) > 20


def test_combine_writes_the_sum_and_says_what_it_is(shipped: Path, tmp_path: Path) -> None:
    out = tmp_path / "mix.safetensors"
    result = lorry_says("combine", "ink:0.5", "wax:0.25", "--out", out)
    assert result.exit_code == 0, result.output
    assert "sum: 0.5 x ink + 0.25 x wax" in result.stdout
    assert "rank 6" in result.stdout
    assert "equal, to rounding in float32" in result.stdout
    assert str(out) in result.stdout
    assert "lorry.combined" in read_safetensors(out).metadata


def test_combine_takes_every_option(shipped: Path, tmp_path: Path) -> None:
    out = tmp_path / "mix.safetensors"
    words = [
        "--method",
        "dare",
        "--density",
        "0.7",
        "--rank",
        "2",
        "--at",
        "to_q=0,1",
        "--at",
        "text_encoder=2",
    ]
    more = ["--seed", "3", "--dtype", "float16", "--dialect", "kohya", "--json", "--out", out]
    result = lorry_says("combine", "ink", "wax:0.5", *words, *more)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["method"], report["ranks"], report["size"]) == (
        "dare",
        {"2": report["targets"]},
        out.stat().st_size,
    )
    assert any(key.startswith("lora_unet_") for key in read_safetensors(out).tensors)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("combine", "ink", "wax", "--method", "tis"), "Did you mean 'ties'"),
        (("combine", "ink", "--at", "to_z=1"), "No layer has 'to_z'"),
        (("combine", "ink:0"), "Every factor is 0"),
        (
            ("combine", "ink", "wax", "--density", "0.3"),
            "the method sum keeps all numbers. Leave the density away",
        ),
        (("combine", "ink", "--method", "orthogonal"), "give two or more"),
        (("combine", "ink", "--dialect", "kohya"), "say where (`--out FILE`), or leave it away"),
        (("extract", "shipped", "shipped", "--dialect", "kohya"), "say where (`--out FILE`)"),
        (("combine", "ink:1e300", "--out", "x.safetensors"), "which float32 does not hold"),
        (("combine", "inc"), "Did you mean 'ink'"),
        (("combine", "ink", "--dialect", "kohyo", "--out", "x.safetensors"), "Did you mean 'kohya'"),
        (("resize", "ink"), "Expected one of a rank, an energy and a size"),
        (("resize", "ink", "--size", "0.0001"), "cannot be cut to 0.0001 MB"),
        (("resize", "ink", "--rank", "1", "--plot", "curve.txt"), "ends in .png, .svg, .pdf"),
    ],
)
def test_a_foreseen_error_is_one_message(shipped: Path, words: tuple[str, ...], said: str) -> None:
    result = lorry_says(*words)
    assert result.exit_code == 1
    assert said in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr


def test_resize_cuts_and_says_what_is_lost(shipped: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.safetensors"
    result = lorry_says("resize", "wax", "--rank", "1", "--at", "conv1=3", "--out", out)
    assert result.exit_code == 0, result.output
    for said in ("targets cut", "rank 1 (", "of the energy kept", "error 0.", str(out)):
        assert said in result.stdout
    assert out.is_file()


def test_resize_shows_the_curve_and_writes_nothing(shipped: Path, tmp_path: Path) -> None:
    picture = tmp_path / "curve.png"
    result = lorry_says("resize", "wax", "--dry-run", "--plot", picture, "--out", tmp_path / "no.safetensors")
    assert result.exit_code == 0, result.output
    assert "--rank 2" in result.stdout
    assert "keeps 100.00%" in result.stdout
    assert not (tmp_path / "no.safetensors").exists()
    check_picture(picture)
    report = json.loads(lorry_says("resize", "wax", "--dry-run", "--json").stdout)
    assert report["points"][0]["way"] == "rank"


def test_a_dry_run_takes_nothing_that_it_does_not_look_at(shipped: Path) -> None:
    result = lorry_says("resize", "wax", "--dry-run", "--rank", "2", "--at", "to_q=1")
    assert result.exit_code == 2
    assert "`--rank`, `--at` beside `--dry-run`" in result.stderr


def test_bake_and_extract_go_back_and_forth(shipped: Path, tmp_path: Path) -> None:
    baked = lorry_says("bake", "shipped", "wax:0.5", "--out", tmp_path / "baked")
    assert baked.exit_code == 0, baked.output
    assert "tensors changed" in baked.stdout
    assert (tmp_path / "baked" / "model_index.json").is_file()
    out = tmp_path / "wax.safetensors"
    result = lorry_says("extract", "shipped", tmp_path / "baked", "--rank", "4", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["errors"]["total"] < 1e-3
    assert report["size"] == out.stat().st_size
    again = lorry_says("bake", "shipped", "wax:0.5", "--out", tmp_path / "baked")
    assert again.exit_code == 1
    assert "is there already" in again.stderr.replace("\n", " ")


def test_extract_takes_every_option(shipped: Path, tmp_path: Path) -> None:
    assert (
        lorry_says(
            "bake", "shipped", "ink", "--dtype", "float16", "--out", tmp_path / "b", "--json"
        ).exit_code
        == 0
    )
    words = [
        "--kronecker",
        "4",
        "--rank",
        "1",
        "--at",
        "to_q=2",
        "--diffs",
        "--least",
        "0.01",
        "--component",
        "unet",
    ]
    more = ["--seed", "1", "--dtype", "bfloat16", "--dialect", "lycoris", "--out", tmp_path / "x.safetensors"]
    result = lorry_says("extract", "shipped", tmp_path / "b", *words, *more)
    assert result.exit_code == 0, result.output
    assert "text_encoder" not in result.stdout
    assert "changes under the least" in result.stdout


def test_inspect_measures_hashes_and_draws_on_request(shipped: Path, tmp_path: Path) -> None:
    picture = tmp_path / "wax.png"
    result = lorry_says("inspect", "wax", "--weights", "--hashes", "--plot", picture)
    assert result.exit_code == 0, result.output
    for said in ("effective rank", "down_blocks.1", "90% of the energy", "AutoV3"):
        assert said in result.stdout
    check_picture(picture)
    report = json.loads(lorry_says("inspect", "wax", "--weights", "--hashes", "--json").stdout)
    assert {"weights", "hashes", "training"} <= report.keys()
    assert "weights" not in json.loads(lorry_says("inspect", "wax", "--json").stdout)


def test_compare_gives_a_verdict_and_a_picture(shipped: Path, tmp_path: Path) -> None:
    picture = tmp_path / "both.svg"
    result = lorry_says("compare", "ink", "wax", "--plot", picture)
    assert result.exit_code == 0, result.output
    assert "in all: apart" in result.stdout
    assert "<svg" in picture.read_text()
    same = json.loads(lorry_says("compare", "ink", "ink", "--json").stdout)
    assert same["whole"]["verdict"] == "reinforce"
    assert len(same["angles"]) == len(same["layers"])


@pytest.mark.parametrize(
    "words",
    [
        ("combine", "ink", "wax"),
        ("resize", "ink", "--rank", "1"),
        ("extract", "shipped", "shipped"),
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("notes.safetensors", "is no adapter, so that it is not overwritten"),
        ("picture.png", "expected a file that ends in .safetensors"),
        ("nowhere/mix.safetensors", "there is no folder"),
    ],
)
def test_an_adapter_is_not_written_over_something_else(
    words: tuple[str, ...], name: str, said: str, shipped: Path, tmp_path: Path
) -> None:
    for path in ("notes.safetensors", "picture.png"):
        (tmp_path / path).write_text("mine")
    result = lorry_says(*words, "--out", tmp_path / name)
    assert result.exit_code == 1, result.output
    assert said in result.stderr.replace("\n", " ")
    assert {path.name for path in tmp_path.iterdir()} == {"notes.safetensors", "picture.png", "assets"}
    assert (tmp_path / "notes.safetensors").read_text() == "mine"


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "BAD", "--weights"],
        ["compare", "ink", "BAD"],
        ["combine", "BAD", "ink", "--out", "OUT"],
        ["combine", "BAD", "ink", "--rank", "1"],
        ["resize", "BAD", "--rank", "1", "--out", "OUT"],
        ["resize", "BAD", "--dry-run"],
        ["bake", "shipped", "BAD", "--out", "FOLDER"],
    ],
)
def test_an_adapter_that_is_not_finite_is_named_and_nothing_is_written(
    shipped: Path, tmp_path: Path, words: list[str]
) -> None:
    tensors = {
        key: tensor.clone()
        for key, tensor in read_safetensors(shipped / "loras" / "ink.safetensors").tensors.items()
    }
    first = next(iter(tensors))
    tensors[first].view(-1)[0] = float("nan")
    paths = {"BAD": write_safetensors(tmp_path / "bad.safetensors", tensors)}
    paths |= {"OUT": tmp_path / "out.safetensors", "FOLDER": tmp_path / "out"}
    result = lorry_says(*(paths.get(word, word) for word in words))
    assert result.exit_code == 1
    assert f"bad.safetensors: `down` of `{first.partition('.lora')[0]}` holds a" in result.stderr
    assert "holds a NaN or an infinity" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["assets", "bad.safetensors"]


@pytest.mark.parametrize(
    "words",
    [
        ["combine", "ink:1e20", "wax", "--dtype", "float16", "--out", "OUT"],
        ["bake", "shipped", "ink:1e20", "--dtype", "float16", "--out", "FOLDER"],
        ["bake", "shipped", "ink:1e300", "--out", "FOLDER"],
    ],
)
def test_what_would_not_be_finite_is_not_written(shipped: Path, tmp_path: Path, words: list[str]) -> None:
    paths = {"OUT": tmp_path / "out.safetensors", "FOLDER": tmp_path / "out"}
    result = lorry_says(*(paths.get(word, word) for word in words))
    assert result.exit_code == 1
    assert "would hold a NaN or an infinity" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["assets"]


def test_a_checkpoint_that_is_not_finite_is_named(shipped: Path, tiny_base: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_base, broken)
    path = broken / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = {key: tensor.clone() for key, tensor in read_safetensors(path).tensors.items()}
    tensors["conv_in.weight"].view(-1)[0] = float("inf")
    path.unlink()
    write_safetensors(path, tensors)
    result = lorry_says("extract", tiny_base, broken, "--out", tmp_path / "out.safetensors")
    assert result.exit_code == 1
    assert f"`unet.conv_in.weight` in {broken} holds a NaN or an infinity" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["combine", "ink", "wax", "--at", "to_q=nan"], "`to_q`: expected finite numbers"),
        (["resize", "ink", "--at", "to_q=inf"], "`to_q`: expected finite numbers"),
        (["resize", "ink", "--size", "nan"], "A size of nan MB: expected a finite one over 0"),
        (["resize", "ink", "--size", "-1"], "A size of -1 MB: expected a finite one over 0"),
        (["extract", "BASE", "BASE", "--at", "to_q=-3"], "`to_q`: expected a rank of 1 or more, got -3"),
        (["extract", "BASE", "BASE", "--at", "to_q=1.5"], "`to_q`: expected a rank of 1 or more, got 1.5"),
    ],
)
def test_numbers_without_sense_are_refused(
    shipped: Path, tiny_base: Path, words: list[str], said: str
) -> None:
    result = lorry_says(*(tiny_base if word == "BASE" else word for word in words))
    assert result.exit_code == 1
    assert said in result.stderr


def test_json_stays_json_beside_a_picture(shipped: Path, tmp_path: Path) -> None:
    result = lorry_says("resize", "ink", "--rank", "1", "--plot", tmp_path / "curve.png", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["targets"]
