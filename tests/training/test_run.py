"""Runs from a folder of pictures to a file, on every kind of base."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

import lorry
from lorry.dialects.diffusers import Diffusers
from lorry.errors import (
    CheckpointError,
    LorryError,
    MissingPackageError,
    SettingsError,
    StateError,
    TrainingError,
    UnsupportedAdapterError,
)
from lorry.files import read_header, read_safetensors
from lorry.training.bases import StableDiffusion
from lorry.training.caches import model_hash
from lorry.training.run import train
from lorry.training.settings import Family, Settings
from lorry.workflows import inspect_file
from models import tiny_sd_pipeline
from training.runs import Listening, drawn, pictures, run


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "flux"])
def test_every_kind_of_base_is_trained_and_its_file_is_loaded_and_acts(
    kind: str, bases: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    from diffusers import DiffusionPipeline

    result = run(data, bases(kind), tmp_path, steps=2, batch=1)
    assert result.finished
    assert result.step == 2
    pipeline = lorry.attach(DiffusionPipeline.from_pretrained(bases(kind)))
    report = pipeline.load_lora_weights(result.adapter)
    assert report.applied > 0
    assert not report.unknown
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    state = denoiser.lorry
    still = [
        path
        for path, delta in next(iter(state.adapters.values())).deltas.items()
        if not delta.tensors()["up"].any()
    ]
    # The last block of SD3 drops what the text's queries give.
    assert still == (["transformer_blocks.1.attn.add_q_proj"] if kind == "sd3" else [])


@pytest.mark.parametrize("kind", ["sd3", "flux"])
@pytest.mark.parametrize("family", ["dora", "loha", "lokr", "ia3", "oft"])
def test_every_family_is_trained_on_transformers_and_its_file_is_loaded(
    family: str, kind: str, bases: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    from diffusers import DiffusionPipeline

    dialect = "diffusers" if family == "dora" else "lycoris"
    changes: dict[str, Any] = {"family": family, "dialect": dialect, "targets": "blocks"}
    result = run(data, bases(kind), tmp_path, steps=2, batch=1, **changes)
    pipeline = lorry.attach(DiffusionPipeline.from_pretrained(bases(kind)))
    report = pipeline.load_lora_weights(result.adapter)
    assert not report.unknown
    deltas = next(iter(pipeline.transformer.lorry.adapters.values())).deltas
    assert {delta.family.lower().strip("()") for delta in deltas.values()} == {family.replace("ia3", "ia)^3")}
    weights = {path: pipeline.transformer.get_submodule(path).weight for path in deltas}
    changed = [path for path, delta in deltas.items() if bool(delta.weight(weights[path]).any())]
    assert len(changed) > 0.9 * len(deltas)


def test_the_loss_falls(sd: Path, data: Path, tmp_path: Path) -> None:
    # The same noise at the same moments, as if the adapter had not been trained and had been.
    before = run(data, sd, tmp_path / "0", steps=1, batch=5, rate=0.0, buckets=False).loss
    result = run(
        data,
        sd,
        tmp_path / "1",
        steps=40,
        batch=5,
        rate=2e-2,
        targets="full",
        buckets=False,
        schedule="constant",
    )
    assert result.loss < 0.97 * before, (before, result.loss)


def test_text_encoders_are_trained_too_when_asked(sd: Path, data: Path, tmp_path: Path) -> None:
    result = run(data, sd, tmp_path, text_encoder=True, text_rank=1)
    tensors = read_safetensors(result.adapter).tensors
    ups = {k: t for k, t in tensors.items() if k.startswith("text_encoder.") and k.endswith("lora_B.weight")}
    assert any("fc1" in key for key in ups)
    assert all(t.shape[1] == 1 and bool(t.any()) for t in ups.values())


def test_the_base_is_what_it_was(sd: Path, data: Path, tmp_path: Path) -> None:
    run(data, sd, tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(sd, safety_checker=None)
    assert model_hash(pipeline.unet) == model_hash(tiny_sd_pipeline().unet)


def test_diffusers_draws_the_same_picture_with_the_file(sd: Path, data: Path, tmp_path: Path) -> None:
    result = run(data, sd, tmp_path, alpha=4.0, rate=5e-2, text_encoder=True)
    ours, theirs = (drawn(sd, result.adapter, by_lorry=by_lorry) for by_lorry in (True, False))
    assert (ours - theirs).abs().max() < 1e-4
    assert (ours - drawn(sd)).abs().max() > 1e-3


def test_a_run_leaves_its_settings_losses_curve_sheet_and_logs(sd: Path, data: Path, tmp_path: Path) -> None:
    listening = Listening()
    changes = {
        "sample_every": 2,
        "sample_prompts": ["a thing", "another"],
        "sample_steps": 1,
        "save_every": 2,
    }
    run(data, sd, tmp_path, listening, tensorboard=True, **changes)
    assert [(p.step, p.steps) for p in listening.steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len((tmp_path / "losses.csv").read_text().splitlines()) == 5
    with Image.open(tmp_path / "losses.png") as curve, Image.open(tmp_path / "samples.png") as sheet:
        assert curve.width > 100
        assert sheet.height > 3 * 128  # rows for steps 0, 2 and 4
    assert list((tmp_path / "logs").rglob("events.out.tfevents*"))
    assert {name for name, _ in listening.files} == {"samples.png", "toy.safetensors"}
    assert (tmp_path / "toy-000002.safetensors").is_file()


def test_the_file_says_how_it_was_made(sd: Path, data: Path, tmp_path: Path) -> None:
    result = run(data, sd, tmp_path, alpha=1.0, trigger="zork", conv_rank=3, targets="attention+conv")
    said = read_header(result.adapter).metadata
    assert said["ss_network_dim"] == "2"
    assert said["ss_network_alpha"] == "1.0"
    assert json.loads(said["ss_network_args"])["conv_dim"] == "3"
    assert said["ss_steps"] == "4"
    tags = next(iter(json.loads(said["ss_tag_frequency"]).values()))
    assert tags["zork"] == 5
    assert tags["thing 1"] == 1
    assert said["modelspec.trigger_phrase"] == "zork"
    assert said["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert said["lorry.base_sha256"] == model_hash(tiny_sd_pipeline().unet)
    assert json.loads(said["lora_adapter_metadata"])["unet.lora_alpha"] == 1.0
    settings = json.loads(said["lorry.settings"])
    assert settings["adapter"]["rank"] == 2
    assert said["ss_sd_model_name"] == settings["run"]["base"] == "sd"
    assert not [key for key, text in said.items() if str(tmp_path.parent) in text], "no paths of this machine"
    content = result.adapter.read_bytes()
    digest = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    assert said["sshs_model_hash"] == digest
    assert said["modelspec.hash_sha256"] == f"0x{digest}"


@pytest.mark.parametrize(
    ("width", "prediction", "architecture", "kohya", "v2"),
    [
        (768, "epsilon", "stable-diffusion-v1", "sd_v1", "False"),
        (1024, "epsilon", "stable-diffusion-v2-512", "sd_v2", "True"),
        (1024, "v_prediction", "stable-diffusion-v2-768-v", "sd_v2_v", "True"),
    ],
)
def test_the_file_says_which_stable_diffusion_it_is_for(
    width: int, prediction: str, architecture: str, kohya: str, v2: str, data: Path, tmp_path: Path
) -> None:
    pipeline = tiny_sd_pipeline()
    pipeline.unet = type(pipeline.unet).from_config({**pipeline.unet.config, "cross_attention_dim": width})
    pipeline.text_encoder = CLIPTextModel(
        CLIPTextConfig(**{**pipeline.text_encoder.config.to_dict(), "hidden_size": width})
    )
    pipeline.scheduler.register_to_config(prediction_type=prediction)
    pipeline.save_pretrained(tmp_path / "base")
    said = read_header(run(data, tmp_path / "base", tmp_path / "run", steps=1).adapter).metadata
    assert said["modelspec.architecture"] == f"{architecture}/lora"
    assert said["ss_base_model_version"] == kohya
    assert said["ss_v2"] == v2


def test_the_file_says_its_title_and_the_words_that_call_it_up(sd: Path, data: Path, tmp_path: Path) -> None:
    result = run(data, sd, tmp_path, steps=1, title="Two things", trigger_words=["zork", "plim"])
    said = read_header(result.adapter).metadata
    assert said["modelspec.title"] == "Two things"
    assert said["modelspec.trigger_phrase"] == "zork, plim"


def test_what_accelerate_was_told_of_accumulating_changes_nothing(
    sd: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_safetensors(run(data, sd, tmp_path / "a", clip=0.01).adapter).tensors
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    found = read_safetensors(run(data, sd, tmp_path / "b", clip=0.01).adapter).tensors
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_numbers_that_float16_does_not_hold_are_saved_in_float32(
    sd: Path, data: Path, tmp_path: Path
) -> None:
    tensors = read_safetensors(run(data, sd, tmp_path, steps=1, rate=1e6).adapter).tensors
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_what_is_saved_is_put_into_its_names_once(
    sd: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    write = Diffusers.write

    def counted(self: Diffusers, adapter: Any) -> Any:
        written.append(adapter)
        return write(self, adapter)

    monkeypatch.setattr(Diffusers, "write", counted)
    run(data, sd, tmp_path, steps=1)
    assert len(written) == 2  # before the first step, to see whether it can be, and after the last


def test_the_same_run_makes_the_same_bytes(sd: Path, data: Path, tmp_path: Path) -> None:
    first = run(data, sd, tmp_path / "run").adapter.read_bytes()
    shutil.rmtree(tmp_path / "run")
    assert run(data, sd, tmp_path / "run").adapter.read_bytes() == first


@pytest.mark.parametrize("optimiser", ["adamw", "schedulefree"])
def test_a_moving_average_and_other_optimisers_are_saved_and_used(
    optimiser: str, sd: Path, data: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"optimiser": optimiser, "schedule": "constant"}
    plain = run(data, sd, tmp_path / "a", **changes)
    average = run(data, sd, tmp_path / "b", ema=0.9, **changes)
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight"
    one, other = (read_safetensors(result.adapter).tensors[key] for result in (plain, average))
    assert 0 < float(other.float().norm()) < float(one.float().norm())


def test_gradient_checkpointing_trains_to_the_same_weights(sd: Path, data: Path, tmp_path: Path) -> None:
    one = run(data, sd, tmp_path / "a")
    other = run(data, sd, tmp_path / "b", checkpointing=True)
    expected, found = (read_safetensors(result.adapter).tensors for result in (one, other))
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_base_in_half_precision_is_trained(precision: str, sd: Path, data: Path, tmp_path: Path) -> None:
    half = run(data, sd, tmp_path / "half", precision=precision)
    whole = run(data, sd, tmp_path / "whole", precision="float32")
    assert half.loss == pytest.approx(whole.loss, rel=2e-2)
    ups = [t for key, t in read_safetensors(half.adapter).tensors.items() if "lora_B" in key]
    assert ups
    assert all(bool(t.any()) for t in ups)


def test_prior_pictures_are_drawn_by_the_base_and_seen_as_often_as_the_others(
    sd: Path, data: Path, tmp_path: Path
) -> None:
    result = run(data, sd, tmp_path, prior_prompt="a thing", prior_count=2, sample_steps=1, batch=4)
    assert len(list((tmp_path / "prior").glob("*.png"))) == 2
    said = read_header(result.adapter).metadata
    assert said["ss_num_train_images"] == "5"
    assert said["ss_num_reg_images"] == "2"


# --- stopping and going on -----------------------------------------------------------------------------------------


def check_equal(one: Any, other: Any) -> None:
    """Raise where two states of an optimiser are not bit for bit the same."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            check_equal(value, other[key])
    else:
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def weights(out: Path, step: int) -> dict[str, torch.Tensor]:
    return dict(read_safetensors(out / "checkpoints" / f"step-{step:08}" / "adapter.safetensors").tensors)


@pytest.mark.parametrize(
    "changes",
    [
        {"flip": True, "caption_dropout": 0.5, "noise_offset": 0.1, "min_snr": 5.0},
        {"optimiser": "schedulefree", "schedule": "constant", "ema": 0.9},
        {"text_encoder": True, "family": "lora", "accumulate": 2},
        {"optimiser": "adamw8bit", "rank": 64, "targets": "blocks"},
        {"init": "pissa", "targets": "blocks+conv"},
        {"init": "olora", "ema": 0.9},
    ],
)
def test_stopped_and_resumed_is_bit_for_bit_as_never_stopped(
    changes: dict[str, Any], sd: Path, data: Path, tmp_path: Path
) -> None:
    whole = run(data, sd, tmp_path / "whole", steps=6, **changes)
    listening = Listening(stop_at=3)
    stopped = run(data, sd, tmp_path / "parts", listening, steps=6, **changes)
    assert not stopped.finished
    assert 3 <= stopped.step <= 4
    resumed = run(data, sd, tmp_path / "parts", resume=True, steps=6, **changes)
    assert resumed.finished
    expected, found = weights(tmp_path / "whole", 6), weights(tmp_path / "parts", 6)
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key
    states = [
        torch.load(tmp_path / name / "checkpoints" / "step-00000006" / "optimiser.pt", weights_only=True)
        for name in ("whole", "parts")
    ]
    check_equal(*(state["optimiser"]["state"] for state in states))
    losses = [(tmp_path / name / "losses.csv").read_text() for name in ("whole", "parts")]
    assert losses[0] == losses[1]
    assert read_safetensors(whole.adapter).tensors.keys() == read_safetensors(resumed.adapter).tensors.keys()


def test_a_finished_run_that_goes_on_writes_its_file_anew(sd: Path, data: Path, tmp_path: Path) -> None:
    result = run(data, sd, tmp_path, steps=2)
    before = read_safetensors(result.adapter).tensors
    expected = {key: tensor.clone() for key, tensor in before.items()}
    result.adapter.unlink()
    again = run(data, sd, tmp_path, resume=True, steps=2, title="Another title")
    assert again.finished
    found = read_safetensors(again.adapter)
    assert found.metadata["modelspec.title"] == "Another title"
    assert all(torch.equal(found.tensors[key], tensor) for key, tensor in expected.items())


def test_a_run_that_was_begun_with_relative_folders_goes_on_from_another_folder(
    sd: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, there in (("pictures", data), ("base", sd)):
        (tmp_path / name).symlink_to(there)
    run(Path("pictures"), Path("base"), Path("out"), steps=2)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    written = Settings.read(tmp_path / "out" / "settings.toml")
    assert (written.data, written.base, written.out) == tuple(
        str(tmp_path / name) for name in ("pictures", "base", "out")
    )
    assert train(written.changed({"steps": 3}), Listening(), resume=True).step == 3


def test_a_base_that_is_no_folder_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shipped").mkdir()
    assert Settings(base="shipped").placed().base == "shipped"
    assert Settings(base="owner/name").placed().base == "owner/name"
    assert Settings().placed().prior == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 3}, "another rank"),
        ({"family": "dora"}, "another family"),
        ({"alpha": 1.0}, "another alpha / rank"),
        ({"targets": "blocks"}, "another number of layers|another targets"),
        ({"rate": 0.5}, "another rate"),
        ({"init": "gaussian"}, "another init"),
        ({"batch": 3}, "another pictures a step"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    changes: dict[str, Any], message: str, sd: Path, data: Path, tmp_path: Path
) -> None:
    run(data, sd, tmp_path, steps=1)
    before, told = weights(tmp_path, 1), (tmp_path / "settings.toml").read_bytes()
    with pytest.raises((CheckpointError, StateError), match=message):
        run(data, sd, tmp_path, resume=True, steps=2, **changes)
    assert torch.equal(next(iter(weights(tmp_path, 1).values())), next(iter(before.values())))
    assert (tmp_path / "settings.toml").read_bytes() == told


def test_a_checkpoint_of_another_base_is_refused(sd: Path, data: Path, tmp_path: Path) -> None:
    run(data, sd, tmp_path / "run", steps=1)
    tiny_sd_pipeline(seed=9).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="another base"):
        run(data, tmp_path / "other", tmp_path / "run", resume=True, steps=2)


def test_a_checkpoint_of_other_prior_pictures_is_refused(sd: Path, data: Path, tmp_path: Path) -> None:
    prior = pictures(tmp_path / "prior", 2)
    run(data, sd, tmp_path / "run", steps=1, prior=str(prior))
    (prior / "0.txt").write_text("another caption")
    with pytest.raises(CheckpointError, match="another data"):
        run(data, sd, tmp_path / "run", resume=True, steps=2, prior=str(prior))
    (prior / "0.txt").write_text("thing 0")
    with pytest.raises(CheckpointError, match="another data"):
        run(data, sd, tmp_path / "run", resume=True, steps=2, prior=str(prior), prior_weight=0.5)


def test_a_run_whose_folder_cannot_be_made_says_so(sd: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(SettingsError, match=r"`out`: expected a folder.*file.*cannot be made"):
            run(data, sd, out, steps=1)


def test_a_folder_with_a_run_in_it_is_not_written_over(sd: Path, data: Path, tmp_path: Path) -> None:
    run(data, sd, tmp_path, steps=1)
    with pytest.raises(
        CheckpointError, match=r"holds a run that is at step 1. Go on with `lorry train --resume"
    ):
        run(data, sd, tmp_path, steps=1)


# --- what cannot be ------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_the_run_before_it_spoils_the_weights(
    sd: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"The loss of step \d+ is (nan|inf). Lower the learning rate"):
        run(data, sd, tmp_path, steps=30, rate=1e18, clip=0.0, schedule="constant")


@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_gradients_that_are_no_numbers_end_the_run_before_they_spoil_the_weights(
    clip: float, sd: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = StableDiffusion.predict

    def with_a_root_of_nothing(self: StableDiffusion, *args: Any) -> torch.Tensor:
        found = predict(self, *args)
        return found + (found * 0).abs().sqrt()  # 0, with a gradient of NaN

    monkeypatch.setattr(StableDiffusion, "predict", with_a_root_of_nothing)
    with pytest.raises(TrainingError, match="The gradients of step 1 have the norm nan"):
        run(data, sd, tmp_path, steps=1, clip=clip)
    assert not (tmp_path / "toy.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 15}, "`resolution`: 15 is no multiple of 4"),
        ({"targets": "atention"}, "There is no preset 'atention'.*Did you mean 'attention'"),
        ({"optimiser": "schedulefree"}, "`schedule`: the schedule-free optimiser has none"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    changes: dict[str, Any], message: str, sd: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises((SettingsError, StateError), match=message):
        run(data, sd, tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "blocked", "message"),
    [
        (
            {"optimiser": "adamw8bit"},
            "bitsandbytes",
            "adamw8bit needs the package bitsandbytes: `pip install",
        ),
        (
            {"optimiser": "schedulefree", "schedule": "constant"},
            "schedulefree",
            "needs the package schedulefree",
        ),
        ({"quantize": "4bit"}, "bitsandbytes", "A base in 4bit needs the package bitsandbytes"),
        ({"quantize": "quanto-int8"}, "optimum.quanto", "optimum-quanto: `pip install optimum-quanto`"),
        ({"quantize": "torchao-int8"}, "torchao.quantization", "torchao: `pip install torchao`"),
    ],
    ids=str,
)
def test_a_package_that_is_missing_is_named_before_anything_is_done(
    changes: dict[str, Any],
    blocked: str,
    message: str,
    sd: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, blocked, None)
    with pytest.raises(MissingPackageError, match=message):
        run(data, sd, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": "atention"}, "no preset 'atention'"),
        ({"dialect": "diffuser"}, "no dialect 'diffuser'"),
        (
            {"family": "oft", "rank": 1},
            "`rank`: expected at least 2 for oft, where a block of 1 turns nothing",
        ),
        ({"family": "oft", "rank": 4, "text_rank": 1, "text_encoder": True}, "`rank`: expected at least 2"),
        ({"text_rate": 1e-3}, "`text_rate` does nothing without `text_encoder`"),
        ({"prior_weight": 0.5}, "`prior_weight` does nothing without `prior` or `prior_prompt`"),
        ({"family": "dora", "init": "pissa"}, "pissa is for LoRA, and `family` is 'dora'"),
    ],
    ids=str,
)
def test_what_is_none_is_refused_before_anything_is_done(
    changes: dict[str, Any], message: str, sd: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(LorryError, match=message):
        run(data, sd, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("family", ["loha", "lokr", "oft"])
def test_a_family_that_a_dialect_has_no_names_for_is_refused_with_those_that_have(
    family: str, sd: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedAdapterError, match="which has no names for them") as caught:
        run(data, sd, tmp_path / "a", steps=1, family=family, dialect="diffusers")
    able = caught.value.__notes__[0].removeprefix("choose another `dialect`: ").split(", ")
    assert "lycoris" in able
    assert "diffusers" not in able
    for number, dialect in enumerate(able):
        assert run(data, sd, tmp_path / str(number), steps=1, family=family, dialect=dialect).finished


@pytest.mark.parametrize("family", get_args(Family))
def test_every_family_is_written_in_names_that_it_has_where_none_are_chosen(
    family: str, sd: Path, data: Path, tmp_path: Path
) -> None:
    result = run(data, sd, tmp_path / "run", steps=1, family=family)
    assert inspect_file(result.adapter).dialect == ("diffusers" if family in ("lora", "dora") else "kohya")


def test_pictures_larger_than_the_base_has_places_for_are_refused(
    bases: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"`resolution`: 64 makes pictures of .* sides of at most 32"):
        run(data, bases("sd3"), tmp_path, resolution=64)


@pytest.mark.parametrize(("kind", "step", "needed"), [("sd", 3, 2), ("flux", 6, 4), ("sd3", 2, 4)])
def test_sizes_that_a_base_cannot_draw_are_refused(
    kind: str, step: int, needed: int, bases: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=f"`bucket_step`: {step} is no multiple of {needed}, which this"):
        run(data, bases(kind), tmp_path / "a", bucket_step=step, resolution=4 * step)
    with pytest.raises(SettingsError, match="`resolution`: 18 is no multiple of 8, which `bucket_step` asks"):
        run(data, bases(kind), tmp_path / "b", bucket_step=8, resolution=18)


def test_a_unet_is_trained_at_every_size_of_whole_latents(sd: Path, data: Path, tmp_path: Path) -> None:
    assert run(data, sd, tmp_path, bucket_step=2, resolution=18).finished


@pytest.mark.parametrize("name", ["min_snr", "noise_offset"])
def test_what_flow_matching_has_no_meaning_for_is_refused(
    name: str, bases: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {name: 0.1}
    with pytest.raises(SettingsError, match=f"`{name}` has no meaning for a base that was trained by flow"):
        run(data, bases("sd3"), tmp_path, **changes)
