"""`lorry generate`, on a random tiny pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cli.runs import bad_lora, lorry_says
from lorry.cli.generating import Order, plan_jobs
from models import tiny_sd_pipeline

QUICK = ("--steps", "2", "--size", "16")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def drawn(folder: Path, *words: str | Path, name: str = "x.png") -> np.ndarray:
    """The pixels of one picture by `lorry generate "a cat" …`."""
    result = lorry_says("generate", "a cat", *QUICK, "--out", folder / name, *words)
    assert result.exit_code == 0, result.output
    return pixels(folder / name)


def test_a_picture_is_what_diffusers_draws_with_that_seed(shipped: Path, tmp_path: Path) -> None:
    pipeline = tiny_sd_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(5)
    expected = pipeline(
        "a cat", num_inference_steps=2, width=16, height=16, guidance_scale=2.0, generator=noise
    )
    assert (drawn(tmp_path, "--seed", "5", "--guidance", "2") == np.asarray(expected.images[0])).all()


def test_a_picture_does_not_depend_on_those_drawn_with_it(shipped: Path, tmp_path: Path) -> None:
    alone = drawn(tmp_path, "--seed", "1")
    lorry_says("generate", "a dog", "a cat", *QUICK, "--count", "2", "--out", tmp_path / "all")
    assert (pixels(tmp_path / "all" / "a-cat-1.png") == alone).all()


def test_an_adapter_changes_the_picture_by_its_strength(shipped: Path, tmp_path: Path) -> None:
    plain, none, half, whole = (
        drawn(tmp_path, *words)
        for words in ((), ("--lora", "ink:0"), ("--lora", "ink:.5"), ("--lora", "ink"))
    )
    assert (plain == none).all()
    assert (plain != half).any()
    assert (half != whole).any()


def test_adapters_mix_whether_named_or_by_file(shipped: Path, tmp_path: Path) -> None:
    named = drawn(tmp_path, "--lora", "ink:0.6", "--lora", "wax:0.4")
    by_file = drawn(
        tmp_path,
        "--lora",
        f"{shipped}/loras/ink.safetensors:0.6",
        "--lora",
        f"{shipped}/loras/wax.safetensors:0.4",
    )
    assert (named == by_file).all()
    assert (named != drawn(tmp_path, "--lora", "ink:0.6")).any()


def test_the_same_adapter_may_be_given_twice(shipped: Path, tmp_path: Path) -> None:
    twice = drawn(tmp_path, "--lora", "ink:0.25", "--lora", "ink:0.25").astype(int)
    assert np.abs(twice - drawn(tmp_path, "--lora", "ink:0.5")).max() <= 1


def test_fused_pictures_are_the_unfused_ones_up_to_rounding(shipped: Path, tmp_path: Path) -> None:
    unfused = drawn(tmp_path, "--lora", "ink:0.7").astype(int)
    assert np.abs(drawn(tmp_path, "--lora", "ink:0.7", "--fuse") - unfused).max() <= 1


def test_fusing_is_done_and_told(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorry.pipelines import LoraLoaderMixin

    fused: list[int] = []
    fuse = LoraLoaderMixin.fuse_lora
    monkeypatch.setattr(
        LoraLoaderMixin, "fuse_lora", lambda self: (fuse(self), fused.append(self.num_fused_loras))
    )
    result = lorry_says(
        "generate", "a cat", *QUICK, "--lora", "ink", "--lora", "wax", "--fuse", "--out", tmp_path
    )
    assert fused == [2]
    assert "fused" in result.stdout


def test_load_reports_and_paths_are_printed(shipped: Path, tmp_path: Path) -> None:
    result = lorry_says(
        "generate", "a cat", *QUICK, "--lora", "wax:0.4", "--out", tmp_path / "new" / "folder"
    )
    assert "wax: diffusers" in result.stdout
    assert "text_encoder: 2 targets" in result.stdout
    assert "strength 0.4" in result.stdout
    assert str(tmp_path / "new" / "folder" / "a-cat-0.png") in result.stdout
    assert (tmp_path / "new" / "folder" / "a-cat-0.png").is_file()


def test_a_picture_says_how_it_was_made(shipped: Path, tmp_path: Path) -> None:
    drawn(tmp_path, "--lora", "ink:0.5", "--seed", "3", "--negative", "a dog")
    with Image.open(tmp_path / "x.png") as picture:
        facts = json.loads(picture.info["lorry"])
    assert (facts["prompt"], facts["seed"], facts["loras"], facts["negative"]) == (
        "a cat",
        3,
        ["ink:0.5"],
        "a dog",
    )


def test_a_negative_prompt_changes_the_picture(shipped: Path, tmp_path: Path) -> None:
    assert (drawn(tmp_path) != drawn(tmp_path, "--negative", "a very red dog")).any()


def test_other_file_formats_are_written(shipped: Path, tmp_path: Path) -> None:
    drawn(tmp_path, name="x.JPG")
    with Image.open(tmp_path / "x.JPG") as picture:
        assert picture.format == "JPEG"


def test_a_base_of_ones_own_may_be_a_folder(shipped: Path, tiny_base: Path, tmp_path: Path) -> None:
    assert (
        drawn(tmp_path, "--base", tiny_base) == drawn(tmp_path, "--base", tiny_base, "--guidance", "7.5")
    ).all()
    assert (drawn(tmp_path, "--base", tiny_base) != drawn(tmp_path)).any()


def test_pictures_have_files_of_their_own(tmp_path: Path) -> None:
    long = "x" * 100
    jobs = plan_jobs(Order(("a cat!", "A  cat?", long, f"{long}y"), seeds=(0, 1), out=tmp_path))
    assert len({job.path for job in jobs}) == len(jobs) == 8
    assert jobs[1].path == tmp_path / "a-cat-1.png"


def test_several_pictures_number_the_file_that_was_named(tmp_path: Path) -> None:
    jobs = plan_jobs(Order(("a", "b"), out=tmp_path / "x.png"))
    assert [job.path.name for job in jobs] == ["x-1.png", "x-2.png"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--base", "/no/such/folder"], "The base model '/no/such/folder' cannot be loaded"),
        (["--lora", "inkk"], "Did you mean 'ink'?"),
        (["--device", "abacus"], "The device 'abacus' cannot be used"),
        (["--device", "cuda:77"], "The device 'cuda:77' cannot be used"),
    ],
)
def test_what_cannot_be_had_is_an_error(shipped: Path, tmp_path: Path, words: list[str], said: str) -> None:
    result = lorry_says("generate", "a cat", *QUICK, "--out", tmp_path / "pictures", *words)
    assert result.exit_code == 1
    assert said in result.stderr
    assert not (tmp_path / "pictures").exists()


def test_an_adapter_that_does_not_fit_is_an_error_that_says_what_was_done(
    shipped: Path, tmp_path: Path
) -> None:
    path = bad_lora(tmp_path / "bad.safetensors")
    result = lorry_says("generate", "a cat", *QUICK, "--lora", path)
    assert result.exit_code == 1
    assert "the delta is (99, 99), the weight is" in result.stderr
    assert f"while loading {path}" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lora", "ink:"], "--lora"),
        (["--size", "big"], "--size"),
        (["--seed", "1", "--seed", "2", "--count", "1"], "2 seeds and a count of 1"),
        (["--dtype", "int8"], "--dtype"),
    ],
)
def test_words_that_make_no_sense_are_usage_errors(words: list[str], said: str) -> None:
    result = lorry_says("generate", "a cat", *words)
    assert result.exit_code == 2
    assert said in result.stderr


def test_an_argument_that_the_pipeline_does_not_take_is_an_error(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorry.cli import generating

    class Odd:
        def __call__(self, prompt: str) -> None: ...

    with pytest.raises(generating.StateError, match="Odd takes no `negative_prompt`"):
        generating._arguments(Order(("a",), base="x", negative="b"), Odd())


def test_progress_is_on_standard_error(shipped: Path, tmp_path: Path) -> None:
    result = lorry_says("generate", "a cat", *QUICK, "--count", "2", "--out", tmp_path)
    assert "4/4" in result.stderr
    assert "4/4" not in result.stdout


def test_the_dtype_is_chosen(shipped: Path, tmp_path: Path) -> None:
    exact = drawn(tmp_path).astype(int)
    rough = drawn(tmp_path, "--dtype", "bfloat16").astype(int)
    assert (exact != rough).any()
    assert np.abs(exact - rough).mean() < 12
