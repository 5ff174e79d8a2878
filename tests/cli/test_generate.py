"""`lorry generate`, on a random tiny pipeline."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cli.runs import bad_lora, lorry_says
from lorry.cli.generate.layout import panels_of
from lorry.cli.generate.order import Job, Order, plan_jobs
from lorry.cli.grid import Panel, draw_grid
from lorry.cli.options import Varied
from lorry.files import weights_hash
from lorry.prompts import parse_parameters
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


def test_a_tag_without_its_end_is_said_to_be_text(shipped: Path, tmp_path: Path) -> None:
    words = ("generate", "a cat <lora:wax:0.4", *QUICK, "--out", tmp_path / "x.png")
    result = lorry_says(*words)
    assert result.exit_code == 0
    assert "`<lora:wax:0.4` has no `>` at its end" in result.stderr
    assert "has no `>`" not in lorry_says(*(word for word in words if word != words[1]), "a cat").stderr


def test_load_reports_and_paths_are_printed(shipped: Path, tmp_path: Path) -> None:
    result = lorry_says(
        "generate", "a cat", *QUICK, "--lora", "wax:0.4", "--out", tmp_path / "new" / "folder"
    )
    assert "wax: diffusers" in result.stdout
    assert "text_encoder: 2 targets" in result.stdout
    assert "strength 0.4" in result.stdout
    assert str(tmp_path / "new" / "folder" / "a-cat-0.png") in result.stdout
    assert (tmp_path / "new" / "folder" / "a-cat-0.png").is_file()


def test_a_picture_says_how_it_was_made_in_a1111s_words(shipped: Path, tmp_path: Path) -> None:
    drawn(tmp_path, "--lora", "ink:0.5", "--seed", "3", "--negative", "a dog")
    with Image.open(tmp_path / "x.png") as picture:
        *lines, settings = picture.info["parameters"].splitlines()
    assert lines == ["a cat <lora:ink:0.5>", "Negative prompt: a dog"]
    digest = weights_hash(shipped / "loras" / "ink.safetensors")[:12]
    assert settings.startswith(
        "Steps: 2, Sampler: DDIM, CFG scale: 3, Seed: 3, Size: 16x16, Model: shipped, "
    )
    assert f'Lora hashes: "ink: {digest}", Precision: float32, Version: "lorry ' in settings


def test_a_negative_prompt_that_the_model_does_not_look_at_is_said(shipped: Path, tmp_path: Path) -> None:
    made = tmp_path / "x.png"
    said = [
        lorry_says("generate", "a cat", *QUICK, "--out", made, "--guidance", guidance, *words)
        for guidance, words in (("1", ["--negative", "x"]), ("1", []), ("2", ["--negative", "x"]))
    ]
    again = lorry_says("generate", "--like", made, "--out", tmp_path / "y.png", "--guidance", "1")
    idle = "does not look at the negative prompt with a `guidance_scale` of 1: it is drawn without"
    assert [(one.exit_code, idle in one.stderr) for one in (*said, again)] == [
        (0, True),
        (0, False),
        (0, False),
        (0, True),
    ]


def test_a_negative_prompt_changes_the_picture(shipped: Path, tmp_path: Path) -> None:
    assert (drawn(tmp_path) != drawn(tmp_path, "--negative", "a very red dog")).any()


def test_other_file_formats_are_written(shipped: Path, tmp_path: Path) -> None:
    drawn(tmp_path, name="x.JPG")
    with Image.open(tmp_path / "x.JPG") as picture:
        assert picture.format == "JPEG"


def test_a_picture_is_written_whole_or_not_at_all(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "pictures"
    for name in ("x.png", "x.jpg"):
        drawn(folder, name=name)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(os, "fsync", full)
    for name in before:
        result = lorry_says("generate", "a dog", *QUICK, "--out", folder / name)
        assert result.exit_code == 1
        assert f"{name}: cannot be written: No space left on device." in " ".join(result.output.split())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_base_of_ones_own_may_be_a_folder(shipped: Path, tiny_base: Path, tmp_path: Path) -> None:
    assert (
        drawn(tmp_path, "--base", tiny_base) == drawn(tmp_path, "--base", tiny_base, "--guidance", "7.5")
    ).all()
    assert (drawn(tmp_path, "--base", tiny_base) != drawn(tmp_path)).any()


def test_pictures_have_files_of_their_own(tmp_path: Path) -> None:
    long = "x" * 100
    jobs = plan_jobs(Order(("a cat!", "A  cat?", long, f"{long}y"), seeds=(0, 1), out=tmp_path))
    assert len({one.path for one in jobs}) == len(jobs) == 8
    assert jobs[1].path == tmp_path / "a-cat-1.png"


def test_adapters_and_strengths_whose_names_are_alike_have_files_of_their_own(
    shipped: Path, loras: Path, tmp_path: Path
) -> None:
    for name in ("x y", "x-y", "X y"):
        shutil.copy(loras / "ink.safetensors", tmp_path / f"{name}.safetensors")
    vary = tuple(Varied(str(path), (1.0, 1.00000001)) for path in sorted(tmp_path.glob("*.safetensors")))
    jobs = plan_jobs(Order(("a cat",), vary=vary, out=tmp_path))
    names = [one.path.name for one in jobs if one.path]
    assert len(set(map(str.lower, names))) == 6
    assert "a-cat-x-y-1-0-no2.png" in map(str.lower, names)
    jobs = plan_jobs(Order(("a", "a b"), vary=(Varied("ink"), Varied("ink")), seeds=(0, 0), out=tmp_path))
    assert len({one.path for one in jobs}) == 8


def test_several_pictures_number_the_file_that_was_named(tmp_path: Path) -> None:
    jobs = plan_jobs(Order(("a", "b"), out=tmp_path / "x.png"))
    assert [one.path and one.path.name for one in jobs] == ["x-1.png", "x-2.png"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--base", "/no/such/folder"], "The base model '/no/such/folder' cannot be loaded"),
        (["--lora", "inkk"], "Did you mean 'ink'?"),
        (["--device", "abacus"], "The device 'abacus' cannot be used"),
        (["--device", "cuda:77"], "The device 'cuda:77' cannot be used"),
        (["--guidance", "nan"], "A guidance of nan: expected a finite number"),
    ],
)
def test_what_cannot_be_had_is_an_error(shipped: Path, tmp_path: Path, words: list[str], said: str) -> None:
    result = lorry_says("generate", "a cat", *QUICK, "--out", tmp_path / "pictures", *words)
    assert result.exit_code == 1
    assert said in result.stderr
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--guidance", "1e38", "--steps", "3"], "The picture of 'a cat' (seed 0) came out as NaN"),
        (["--lora", "ink:1e300"], "`<lora:ink:1e+300>`: expected a finite number, got 1e+300"),
    ],
)
def test_numbers_that_no_picture_comes_of_are_errors_and_none_is_written(
    shipped: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    result = lorry_says("generate", "a cat", *QUICK, "--out", tmp_path / "x.png", *words)
    assert result.exit_code == 1
    assert said in result.stderr
    assert not (tmp_path / "x.png").exists()


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
        (["--fuse"], "nothing to fuse"),
        (["--seed", str(2**64)], "a seed of 18446744073709551616"),
        (["--seed", str(2**63 - 2), "--count", "2"], "a seed of"),
    ],
)
def test_words_that_make_no_sense_are_usage_errors(words: list[str], said: str) -> None:
    result = lorry_says("generate", "a cat", *words)
    assert result.exit_code == 2
    assert said in result.stderr


def test_an_argument_that_the_pipeline_does_not_take_is_an_error(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorry.cli.generate import command as generating

    class Odd:
        def __call__(self, prompt: str) -> None: ...

    with pytest.raises(generating.StateError, match="Odd takes no `negative_prompt`"):
        generating._arguments(Order(("a",), base="x", negative="b"), Odd())


def test_what_the_pipeline_refuses_is_told_in_its_words(shipped: Path, tmp_path: Path) -> None:
    result = lorry_says("generate", "a cat", "--size", "63", "--steps", "1", "--out", tmp_path / "x.png")
    assert result.exit_code == 1
    assert (
        "StableDiffusionPipeline cannot draw this: `height` and `width` have to be divisible" in result.stderr
    )
    assert not list(tmp_path.glob("*.png"))


def test_progress_is_on_standard_error(shipped: Path, tmp_path: Path) -> None:
    result = lorry_says("generate", "a cat", *QUICK, "--count", "2", "--out", tmp_path)
    assert "4/4" in result.stderr
    assert "4/4" not in result.stdout


def test_the_dtype_is_chosen(shipped: Path, tmp_path: Path) -> None:
    exact = drawn(tmp_path).astype(int)
    rough = drawn(tmp_path, "--dtype", "bfloat16").astype(int)
    assert (exact != rough).any()
    assert np.abs(exact - rough).mean() < 12


# --- adapters in prompts --------------------------------------------------------------------------------------------


def test_adapters_that_a_prompt_names_act_as_those_of_the_options(shipped: Path, tmp_path: Path) -> None:
    by_option = drawn(tmp_path, "--lora", "ink:0.6", "--lora", "wax:0.4")
    lorry_says("generate", "a <lora:ink:0.6> cat <lora:wax:0.4>", *QUICK, "--out", tmp_path / "y.png")
    assert (pixels(tmp_path / "y.png") == by_option).all()


def test_each_prompt_has_its_own_adapters(shipped: Path, tmp_path: Path) -> None:
    ink, plain = drawn(tmp_path, "--lora", "ink"), drawn(tmp_path)
    prompts = ("a cat <lora:ink>", "a cat", "a cat <lora:wax>")
    assert lorry_says("generate", *prompts, *QUICK, "--out", tmp_path / "z.png").exit_code == 0
    assert (pixels(tmp_path / "z-1.png") == ink).all()
    assert (pixels(tmp_path / "z-2.png") == plain).all()
    assert (pixels(tmp_path / "z-3.png") != plain).any()


def test_fused_adapters_change_from_prompt_to_prompt(shipped: Path, tmp_path: Path) -> None:
    wax = drawn(tmp_path, "--lora", "wax", "--fuse")
    prompts = ("a cat <lora:ink>", "a cat <lora:wax>")
    assert lorry_says("generate", *prompts, *QUICK, "--fuse", "--out", tmp_path / "z.png").exit_code == 0
    assert (pixels(tmp_path / "z-2.png") == wax).all()


def test_the_text_encoders_have_a_strength_of_their_own(shipped: Path, tmp_path: Path) -> None:
    def tagged(tag: str, *words: str) -> np.ndarray:
        assert (
            lorry_says("generate", f"a cat {tag}", *QUICK, "--out", tmp_path / "t.png", *words).exit_code == 0
        )
        return pixels(tmp_path / "t.png")

    both, denoiser = tagged("<lora:ink:0.8>"), tagged("<lora:ink:0.8:te=0>")
    assert (both != denoiser).any()
    assert (tagged("<lora:ink:0.8:0>") == denoiser).all()
    assert (tagged("<lora:ink:0:0.8>", "--te-first") == denoiser).all()


def test_blocks_and_steps_of_a_tag_are_obeyed(shipped: Path, tmp_path: Path) -> None:
    def tagged(tag: str) -> np.ndarray:
        result = lorry_says("generate", f"a cat {tag}", *QUICK, "--out", tmp_path / "t.png")
        assert result.exit_code == 0, result.output
        return pixels(tmp_path / "t.png")

    plain, whole = tagged(""), tagged("<lora:ink:1>")
    assert (tagged("<lora:ink:1:lbw=ALL:start=1:stop=9>") == whole).all()
    assert (tagged("<lora:ink:1:lbw=NONE>") == plain).all()
    assert (tagged("<lora:ink:1:te=0:stop=1>") == plain).all()
    part = tagged("<lora:ink:1:start=2>")
    assert (part != plain).any() and (part != whole).any()  # noqa: PT018


def test_names_are_looked_up_in_the_library(shipped: Path, tmp_path: Path, loras: Path) -> None:
    (tmp_path / "mine" / "sub").mkdir(parents=True)
    shutil.copy(loras / "ink.safetensors", tmp_path / "mine" / "sub" / "my ink v1.5.safetensors")
    words = (*QUICK, "--library", tmp_path / "mine", "--out", tmp_path / "y.png")
    for name in ("my ink v1.5", "sub/My Ink v1.5", r"sub\my ink v1.5", "my ink v1.5.safetensors"):
        result = lorry_says("generate", f"a cat <lora:{name}>", *words)
        assert result.exit_code == 0, result.output
        assert (pixels(tmp_path / "y.png") == drawn(tmp_path, "--lora", "ink")).all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a <lora:inkk:1>"], r"There is no adapter 'inkk' in what lorry ships"),
        (["a <lora:inkk:1>"], r"Did you mean 'ink'?"),
        (["a <lora:owner/name:1>"], r"There is no adapter 'owner/name'"),
        (["a <lora:ink:1:lbw=1,0>"], r"This UNet takes"),
        (["a <lora:ink:1:2:3>"], r"`<lora:ink:1:2:3>` (character 3 of the prompt): it has 3 strengths"),
        (["a", "--negative", "<lora:ink:1>"], "The negative prompt names an adapter"),
        (["a <lora:ink:1>", "--library", "/no/such"], "/no/such: there is no such folder"),
        (["a cat", "--library", "/no/such"], "/no/such: there is no such folder"),
        (["--like", "/no/such.png"], "/no/such.png: there is no such picture"),
    ],
)
def test_what_a_prompt_cannot_have_is_an_error(shipped: Path, words: list[str], said: str) -> None:
    result = lorry_says("generate", *words)
    assert result.exit_code == 1
    assert said in result.stderr


# --- pictures that are drawn again ----------------------------------------------------------------------------------


def again(picture: Path, *words: str | Path) -> tuple[bytes, str]:
    """What `lorry generate --like` draws, and how it says that it was made."""
    path = picture.with_name("again.png")
    result = lorry_says("generate", "--like", picture, "--out", path, *words)
    assert result.exit_code == 0, result.output
    with Image.open(path) as drawn_again:
        return drawn_again.tobytes(), drawn_again.info["parameters"]


@pytest.mark.parametrize(
    "words",
    [
        ("a cat",),
        ("a cat, <lora:ink:0.6:te=0.3> big\nand <lora:wax:0.2>", "--negative", "a dog: bad, ugly"),
        ("a cat", "--lora", "ink:0.6", "--lora", "wax:0.4", "--lora", "ink:0.1", "--fuse"),
        ("a cat", "--seed", "77", "--guidance", "4.25", "--dtype", "bfloat16"),
        ("ein Käfer 虫", "--size", "16x32"),
    ],
)
def test_a_picture_is_drawn_again_from_what_it_says(
    shipped: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    assert lorry_says("generate", *QUICK, *words, "--out", tmp_path / "x.png").exit_code == 0
    with Image.open(tmp_path / "x.png") as first:
        assert again(tmp_path / "x.png") == (first.tobytes(), first.info["parameters"])


def test_files_that_options_named_are_found_again(shipped: Path, tmp_path: Path, loras: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    shutil.copy(loras / "ink.safetensors", tmp_path / "one" / "mine.safetensors")
    shutil.copy(loras / "wax.safetensors", tmp_path / "two" / "mine.safetensors")
    one, two = tmp_path / "one" / "mine.safetensors", tmp_path / "two" / "mine.safetensors"
    drawn(tmp_path, "--lora", one, "--lora", two)
    with Image.open(tmp_path / "x.png") as first:
        assert again(tmp_path / "x.png") == (first.tobytes(), first.info["parameters"])


def test_options_change_what_is_drawn_again(shipped: Path, tmp_path: Path) -> None:
    drawn(tmp_path, "--lora", "ink:0.5", "--seed", "3", "--negative", "x")
    _, said = again(tmp_path / "x.png", "--seed", "4", "--steps", "3", "--negative", "")
    found = parse_parameters(said)
    assert (found.settings["Seed"], found.settings["Steps"], found.negative) == ("4", "3", "")
    assert found.prompt == "a cat <lora:ink:0.5>"


def test_jpegs_and_webps_are_drawn_again_too(shipped: Path, tmp_path: Path) -> None:
    whole = drawn(tmp_path, "--lora", "ink:0.5")
    for name in ("x.jpg", "x.webp"):
        drawn(tmp_path, "--lora", "ink:0.5", name=name)
        again(tmp_path / name)
        assert (pixels(tmp_path / "again.png") == whole).all()


def test_an_adapter_that_has_changed_since_is_told(shipped: Path, tmp_path: Path, loras: Path) -> None:
    (tmp_path / "mine").mkdir()
    for source in ("ink", "wax"):
        shutil.copy(loras / f"{source}.safetensors", tmp_path / "mine" / "my.safetensors")
        if source == "ink":
            lorry_says(
                *("generate", "a <lora:my>", *QUICK, "--out", tmp_path / "x.png"),
                *("--library", tmp_path / "mine"),
            )
    result = lorry_says(
        "generate", "--like", tmp_path / "x.png", "--library", tmp_path / "mine", "--out", tmp_path / "y.png"
    )
    assert "my is another file than the picture was made with" in result.stderr


def test_a1111s_two_strengths_are_read_in_its_order(shipped: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    info = PngInfo()
    info.add_text(
        "parameters", "a cat <lora:ink:0.5:0.2>\nSteps: 2, Sampler: DDIM, CFG scale: 2, Seed: 3, Size: 16x16"
    )
    Image.new("RGB", (16, 16)).save(path, pnginfo=info)
    _, said = again(path, "--base", "shipped")
    assert parse_parameters(said).prompt == "a cat <lora:ink:0.2:te=0.5>"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "does not say how it was made"),
        ("a cat", "expected a last line such as"),
        ("a\nSteps: x, Seed: 1, Size: 16x16", "in words that make no sense"),
        ("a\nSteps: 2, Seed: 1, Size: huge", "in words that make no sense"),
        ("a\nSteps: 2, Seed: 1, Model: owner/model", "'owner/model', which is no folder on this machine"),
    ],
)
def test_a_picture_that_says_too_little_is_an_error(tmp_path: Path, text: str | None, said: str) -> None:
    info = PngInfo()
    if text is not None:
        info.add_text("parameters", text)
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png", pnginfo=info)
    result = lorry_says("generate", "--like", tmp_path / "x.png")
    assert result.exit_code == 1
    assert said in result.stderr


def test_json_says_what_was_drawn_and_loaded(shipped: Path, tmp_path: Path) -> None:
    result = lorry_says("generate", "a cat", "--lora", "ink:0.5", *QUICK, "--out", tmp_path, "--json")
    said = json.loads(result.stdout)
    assert said["pictures"][0]["path"] == str(tmp_path / "a-cat-0.png")
    assert said["pictures"][0]["prompt"] == "a cat <lora:ink:0.5>"
    assert said["pictures"][0]["settings"]["Seed"] == "0"
    assert said["adapters"][0]["source"] == "ink"


def test_without_a_prompt_or_a_picture_there_is_nothing_to_draw() -> None:
    result = lorry_says("generate")
    assert result.exit_code == 2
    assert "give a PROMPT" in result.stderr


# --- grids ------------------------------------------------------------------------------------------------------------


def test_each_varied_adapter_is_drawn_by_itself_at_each_strength(shipped: Path, tmp_path: Path) -> None:
    varied = ("--vary", "ink:0.3,1", "--vary", "wax", "--out", tmp_path / "all")
    assert lorry_says("generate", "a cat", *QUICK, *varied).exit_code == 0
    names = ["a-cat-ink-0.3-0.png", "a-cat-ink-1-0.png", "a-cat-wax-1-0.png"]
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == names
    assert (pixels(tmp_path / "all" / names[0]) == drawn(tmp_path, "--lora", "ink:0.3")).all()
    assert (pixels(tmp_path / "all" / names[2]) == drawn(tmp_path, "--lora", "wax")).all()


def test_a_grid_is_one_picture_and_the_only_one(shipped: Path, tmp_path: Path) -> None:
    words = ("--vary", "ink:0.3,1", "--vary", "wax:1", "--seed", "1", "--grid", tmp_path / "new" / "grid.png")
    result = lorry_says("generate", "a cat", *QUICK, *words, "--json")
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.rglob("*.png")] == ["grid.png"]
    said = json.loads(result.stdout)
    assert [one["labels"]["strength"] for one in said["pictures"]] == [
        "strength 0.3",
        "strength 1",
        "strength 1",
    ]
    assert said["grid"] == str(tmp_path / "new" / "grid.png")


def job(prompt: str, adapter: str, seed: str, strength: str) -> Job:
    return Job("", (), 0, None, {"prompt": prompt, "adapter": adapter, "seed": seed, "strength": strength})


def test_the_last_two_axes_that_vary_are_columns_and_rows_and_the_others_panels() -> None:
    jobs = [
        job(p, a, "seed 0", f"strength {s}") for p in ("x", "y") for a in ("ink", "wax") for s in ("1", "0.5")
    ]
    pictures = [Image.new("RGB", (1, 1), (number, 0, 0)) for number in range(8)]
    first, second = panels_of(jobs, pictures)
    assert (first.title, second.title) == ("x", "y")
    assert (first.columns, first.rows) == (["strength 0.5", "strength 1"], ["ink", "wax"])
    assert first.cells[0, 1] is pictures[0]
    assert second.cells[1, 0] is pictures[7]


def test_the_pictures_stand_in_the_grid_as_they_were_drawn() -> None:
    picture = Image.new("RGB", (128, 128), (1, 200, 3))
    grid = draw_grid([Panel("title", ["one", "two"], ["row"], {(0, 0): picture, (0, 1): "does not fit"})])
    colours = {colour: count for count, colour in grid.getcolors(1 << 20) or ()}
    assert colours[1, 200, 3] == 128 * 128


@pytest.mark.parametrize("words", [["--vary", "ink:"], ["--vary", "ink:1,much"], ["--vary", "ink:1,,2"]])
def test_a_list_of_strengths_that_is_none_is_an_error(shipped: Path, words: list[str]) -> None:
    result = lorry_says("generate", "a cat", *words)
    assert result.exit_code == 2
    assert "expected strengths" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "notes.txt"), "expected a picture's name"),
        (("--grid", "grid.txt"), "expected a picture's name"),
        (("--grid", "x.png", "--out", "x.png"), "cannot be one file"),
        (("--out", "file/x.png"), "its folder cannot be made"),
        (("--grid", "file/x.png"), "its folder cannot be made"),
        (("--out", "x" * 251 + ".png"), "cannot be written"),
        (("--grid", "x" * 251 + ".png"), "cannot be written"),
    ],
)
def test_where_a_picture_cannot_go_is_said_before_it_is_drawn(
    words: tuple[str, str], said: str, shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it is drawn")

    monkeypatch.setattr("lorry.cli.generate.command._drawing", never)
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "file").write_text("a file")
    monkeypatch.chdir(folder)
    result = lorry_says("generate", "a cat", *QUICK, *words)
    assert result.exit_code == 1, result.output
    assert said in result.stderr.replace("\n", " ")
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_folder_that_is_there_may_have_any_name(shipped: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures.txt").mkdir()
    drawn(tmp_path, name="pictures.txt/x.png")
    result = lorry_says("generate", "a cat", *QUICK, "--out", tmp_path / "pictures.txt")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "pictures.txt" / "a-cat-0.png").is_file()
