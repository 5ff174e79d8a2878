"""Adapters fused into checkpoints, and pulled out of them again."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lorry
from cli.runs import write_lora
from lorry.binding import weight_shape
from lorry.binding.renaming import in_original_names
from lorry.errors import FileError, FormatError, LorryError, ShapeMismatchError, StateError
from lorry.files import read_header, read_safetensors, write_safetensors
from lorry.workflows.bake import bake_files
from lorry.workflows.checkpoints import open_checkpoint
from lorry.workflows.extract import Form, extract_files
from lorry.workflows.rules import Rule
from lorry.workflows.storing import write_adapter
from models import (
    as_adapter,
    carriers,
    random_delta,
    tiny_flux_transformer,
    tiny_ovis_transformer,
    tiny_sd3_transformer,
    tiny_sd_pipeline,
)
from workflows.test_checkpoints import original_state, single_file


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "base"
    tiny_sd_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def baked(base: Path) -> Path:
    """The base with a LoRA of rank 4 fused into it."""
    lora = write_lora(base.parent / "lora.safetensors", 1, rank=4)
    bake_files(base, [(lora, 0.7)], base.parent / "baked")
    return base.parent / "baked"


def weights(path: Path) -> dict[str, Tensor]:
    with open_checkpoint(path) as checkpoint:
        return {
            f"{component}.{name}": checkpoint.read(place).float()
            for component, places in checkpoint.components.items()
            for name, place in places.items()
        }


def test_a_baked_folder_is_the_fused_pipeline_to_the_bit(base: Path, tmp_path: Path) -> None:
    one, two = write_lora(tmp_path / "a.safetensors", 1), write_lora(tmp_path / "b.safetensors", 2, rank=4)
    report = bake_files(base, [(one, 0.7), (two, -0.3)], tmp_path / "out")
    pipeline: Any = lorry.attach(tiny_sd_pipeline())
    pipeline.load_lora_weights(str(one), adapter_name="a")
    pipeline.load_lora_weights(str(two), adapter_name="b")
    pipeline.set_adapters(["a", "b"], [0.7, -0.3])
    pipeline.fuse_lora()
    fused = {
        f"{name}.{key}": value
        for name in ("unet", "text_encoder")
        for key, value in getattr(pipeline, name).state_dict().items()
    }
    got = weights(tmp_path / "out")
    assert set(got) == set(fused)
    assert all(torch.equal(got[key], fused[key]) for key in got)
    assert report.tensors == sum(not torch.equal(got[key], value) for key, value in weights(base).items())


def test_a_baked_folder_is_a_pipeline_that_says_what_went_in(base: Path, baked: Path) -> None:
    type(tiny_sd_pipeline()).from_pretrained(baked, safety_checker=None)
    text = read_header(baked / "unet" / "diffusion_pytorch_model.safetensors").metadata
    assert json.loads(text["lorry.baked"]) == [{"file": "lora.safetensors", "strength": 0.7}]
    vae = "vae/diffusion_pytorch_model.safetensors"
    assert (baked / vae).read_bytes() == (base / vae).read_bytes()


def test_tensors_that_keep_their_bits_are_not_told_as_changed(base: Path, tmp_path: Path) -> None:
    one, two = write_lora(tmp_path / "a.safetensors", 1), write_lora(tmp_path / "b.safetensors", 2)
    with pytest.raises(StateError, match="Every strength is 0: the checkpoint would be as it is"):
        bake_files(base, [(one, 0.0), (two, 0.0)], tmp_path / "no")
    assert not (tmp_path / "no").exists()
    report = bake_files(base, [(one, 1e-30)], tmp_path / "rounded")
    count = sum(part.targets for part in report.adapters[0][0].components)
    assert (report.tensors, report.unmoved) == (0, count)
    assert f"  {count} stayed as they are: what was added is zero, or rounded away" in str(report)
    report = bake_files(base, [(one, 0.0), (two, 1.0)], tmp_path / "one", dtype="float16")
    assert (report.tensors, report.unmoved) == (count, 0)


def test_half_precision_is_rounded_once(base: Path, tmp_path: Path) -> None:
    pipeline = tiny_sd_pipeline().to(torch.float16)
    pipeline.save_pretrained(tmp_path / "half")
    lora = write_lora(tmp_path / "a.safetensors", 1)
    bake_files(tmp_path / "half", [(lora, 1.0)], tmp_path / "kept")
    bake_files(tmp_path / "half", [(lora, 1.0)], tmp_path / "wide", dtype="float32")
    kept = read_safetensors(tmp_path / "kept/unet/diffusion_pytorch_model.safetensors").tensors
    wide = read_safetensors(tmp_path / "wide/unet/diffusion_pytorch_model.safetensors").tensors
    assert {t.dtype for t in kept.values()} == {torch.float16}
    assert {t.dtype for t in wide.values()} == {torch.float32}
    assert all(torch.equal(wide[key].half(), kept[key]) for key in kept)
    assert any(not torch.equal(wide[key], kept[key].float()) for key in kept)


@pytest.mark.parametrize("sdxl", [False, True], ids=["SD", "SDXL"])
def test_a_single_file_is_baked_under_its_own_names(tmp_path: Path, sdxl: bool) -> None:
    path, pipeline = single_file(tmp_path / "model.safetensors", sdxl)
    tensors: dict[str, Tensor] = {}
    chosen = {"unet": ("to_q", "conv1", "conv_in"), "text_encoder": ("q_proj", "fc1")}
    if sdxl:
        chosen["text_encoder_2"] = ("k_proj", "v_proj", "out_proj", "fc2", "text_projection")
    for component, ends in chosen.items():
        for number, (name, module) in enumerate(carriers(getattr(pipeline, component), ends).items()):
            shape = weight_shape(module) or (0,)
            random = torch.Generator().manual_seed(number)
            ones = (1,) * len(shape[2:])
            tensors[f"{component}.{name}.lora_A.weight"] = torch.randn(2, *shape[1:], generator=random)
            tensors[f"{component}.{name}.lora_B.weight"] = torch.randn(shape[0], 2, *ones, generator=random)
    lora = write_safetensors(tmp_path / "lora.safetensors", tensors)
    bake_files(path, [(lora, 0.5)], tmp_path / "baked.safetensors")
    before, after = weights(path), weights(tmp_path / "baked.safetensors")
    pairs = {key.replace("text_model.", ""): tensor for key, tensor in tensors.items()}
    for key, value in before.items():
        name = key.removesuffix(".weight")
        if f"{name}.lora_A.weight" in pairs:
            down, up = (pairs[f"{name}.lora_{half}.weight"].flatten(1) for half in "AB")
            value = value + 0.5 * (up @ down).reshape(value.shape)
        torch.testing.assert_close(after[key], value)
    assert set(read_header(tmp_path / "baked.safetensors").tensors) == set(read_header(path).tensors)
    assert sum(not torch.equal(after[key], before[key]) for key in before) == len(tensors) / 2


@pytest.mark.parametrize("build", [tiny_flux_transformer, tiny_sd3_transformer, tiny_ovis_transformer])
def test_a_single_file_transformer_is_baked_and_extracted_in_its_own_and_in_diffusers_names(
    tmp_path: Path, build: Any
) -> None:
    model = build()
    path = write_safetensors(tmp_path / "base.safetensors", original_state(model))
    chosen = {
        **carriers(model, ("to_q", "add_v_proj", "proj_mlp", "net.0.proj", "norm_out.linear", "proj_out"))
    }
    shapes = {name: weight_shape(module) or (0,) for name, module in chosen.items()}
    adapter = as_adapter(
        {name: random_delta(shape, seed) for seed, (name, shape) in enumerate(shapes.items())}, "transformer"
    )
    own = in_original_names(adapter, {"transformer": model})
    assert {entry.target.path for entry in own.entries}.isdisjoint(
        entry.target.path for entry in adapter.entries if entry.target.path.endswith("to_q")
    )
    baked = []
    for name, written, dialect in (("diffusers", adapter, "diffusers"), ("own", own, "comfyui")):
        lora = write_adapter(written, tmp_path / f"{name}-lora.safetensors", dialect)
        out = tmp_path / f"{name}.safetensors"
        bake_files(path, [(lora, 0.5)], out)
        baked.append(weights(out))
        assert set(read_header(out).tensors) == set(read_header(path).tensors)
    before = weights(path)
    for name, delta in ((entry.target.path, entry.delta) for entry in adapter.entries):
        wanted = before[f"transformer.{name}.weight"] + 0.5 * delta.weight()
        for after in baked:
            torch.testing.assert_close(after[f"transformer.{name}.weight"], wanted)
    assert sum(not torch.equal(baked[0][key], before[key]) for key in before) == len(shapes)
    report = extract_files(
        path, tmp_path / "own.safetensors", tmp_path / "x.safetensors", Form(rank=4), dialect="diffusers"
    )
    assert report.targets == {"transformer": len(shapes)}
    assert report.errors.total < 1e-3
    bake_files(path, [(tmp_path / "x.safetensors", 1.0)], tmp_path / "again.safetensors")
    for key, value in weights(tmp_path / "again.safetensors").items():
        torch.testing.assert_close(value, baked[1][key], rtol=1e-2, atol=1e-3)


def test_a_pickle_is_baked_into_a_safetensors_file(tmp_path: Path) -> None:
    path, _ = single_file(tmp_path / "model.safetensors", sdxl=False)
    torch.save({"state_dict": dict(read_safetensors(path).tensors)}, tmp_path / "model.ckpt")
    delta = random_delta((4, 8, 3, 3))
    lora = write_adapter(as_adapter({"conv_out": delta}), tmp_path / "a.safetensors", "diffusers")
    for name in ("model.safetensors", "model.ckpt"):
        bake_files(tmp_path / name, [(lora, 0.5)], tmp_path / f"baked-{Path(name).suffix[1:]}.safetensors")
    one, two = (
        weights(tmp_path / "baked-ckpt.safetensors"),
        weights(tmp_path / "baked-safetensors.safetensors"),
    )
    assert all(torch.equal(one[key], two[key]) for key in two)
    with pytest.raises(FileError, match=r"is written as a safetensors file"):
        bake_files(tmp_path / "model.ckpt", [(lora, 0.5)], tmp_path / "baked.ckpt")


def test_an_adapter_that_does_not_fit_leaves_nothing_behind(base: Path, tmp_path: Path) -> None:
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    bad = {f"{layer}.lora_A.weight": torch.ones(2, 99), f"{layer}.lora_B.weight": torch.ones(99, 2)}
    path = write_safetensors(tmp_path / "bad.safetensors", bad)
    with pytest.raises(ShapeMismatchError):
        bake_files(base, [(path, 1.0)], tmp_path / "out")
    assert [found.name for found in tmp_path.iterdir()] == ["bad.safetensors"]


def test_a_full_disk_is_told_in_one_sentence_and_nothing_is_left(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: os.PathLike[str], *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", os.fspath(source))

    lora = write_lora(tmp_path / "a.safetensors", 1)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(
        FileError, match=r"out: cannot be written: \[Errno 28\] No space left on device: '[^']+'\.$"
    ):
        bake_files(base, [(lora, 1.0)], tmp_path / "out")
    assert [found.name for found in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_an_adapter_in_the_place_of_a_checkpoint_is_named(base: Path, tmp_path: Path, suffix: str) -> None:
    adapter = write_lora(tmp_path / "lora.safetensors", 1)
    given = adapter if suffix == ".safetensors" else tmp_path / "lora.pt"
    if given is not adapter:
        torch.save(dict(read_safetensors(adapter).tensors), given)
    said = rf"lora{re.escape(suffix)} is an adapter \(diffusers\), expected a checkpoint"
    with pytest.raises(FormatError, match=said):
        bake_files(given, [(adapter, 1.0)], tmp_path / "out.safetensors")
    for pair in ((given, base), (base, given)):
        with pytest.raises(FormatError, match=said):
            extract_files(*pair, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_nothing_is_written_over(base: Path, baked: Path, tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "a.safetensors", 1)
    with pytest.raises(FileError, match="is there already"):
        bake_files(base, [(lora, 1.0)], baked)


@pytest.mark.parametrize(
    ("form", "family", "limit"),
    [
        (Form(rank=4), "LoRA", 1e-5),
        (Form(rank=2), "LoRA", 0.9),
        (Form(rank=None, energy=0.9), "LoRA", 0.1**0.5),
        (Form(rank=None, kronecker=4), "LoKr", 0.99),
    ],
    ids=["rank", "lower rank", "energy", "kronecker"],
)
def test_the_base_and_what_was_extracted_are_the_tuned_one_to_the_printed_error(
    base: Path, baked: Path, tmp_path: Path, form: Form, family: str, limit: float
) -> None:
    out = tmp_path / "lora.safetensors"
    report = extract_files(base, baked, out, form, dtype="float32")
    assert lorry_families(out) == {family}
    bake_files(base, [(out, 1.0)], tmp_path / "again")
    start, wanted, got = weights(base), weights(baked), weights(tmp_path / "again")
    error = sum(float((got[key] - wanted[key]).square().sum()) for key in wanted) ** 0.5
    change = sum(float((wanted[key] - start[key]).square().sum()) for key in wanted) ** 0.5
    assert error / change == pytest.approx(report.errors.total, rel=1e-3, abs=1e-5)
    assert report.errors.total < limit
    assert report.targets == {"unet": sum(report.targets.values()) - 2, "text_encoder": 2}


def lorry_families(path: Path) -> set[str]:
    from lorry.workflows import inspect_file

    return set(inspect_file(path).families)


def test_norms_and_biases_are_named_or_taken_along(base: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(base, tuned)
    file = tuned / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = dict(read_safetensors(file).tensors)
    random = torch.Generator().manual_seed(0)
    tensors = {key: t + 0.1 * torch.randn(t.shape, generator=random) for key, t in tensors.items()}
    write_safetensors(file, tensors, {"format": "pt"})
    out = tmp_path / "lora.safetensors"
    report = extract_files(base, tuned, out, Form(rank=100), dtype="float32")
    assert set(report.left_out) == {"biases (`diffs` takes them along)", "norms (`diffs` takes them along)"}
    assert 0 < report.left_out_share < 0.1
    whole = extract_files(base, tuned, out, Form(rank=100, diffs=True), dtype="float32")
    assert not whole.left_out
    bake_files(base, [(out, 1.0)], tmp_path / "again")
    wanted, got = weights(tuned), weights(tmp_path / "again")
    for key in wanted:
        torch.testing.assert_close(got[key], wanted[key], rtol=0, atol=1e-4)


def test_a_folder_and_a_single_file_have_the_same_difference(tmp_path: Path) -> None:
    path, pipeline = single_file(tmp_path / "base.safetensors", sdxl=True)
    pipeline.save_pretrained(tmp_path / "folder")
    lora = {"text_encoder_2.encoder.layers.0.self_attn.k_proj": (32, 32), "unet.conv_in": (8, 4, 3, 3)}
    tensors = {}
    for name, shape in lora.items():
        tensors[f"{name}.lora_A.weight"] = torch.randn(2, *shape[1:])
        tensors[f"{name}.lora_B.weight"] = torch.randn(shape[0], 2, *(1 for _ in shape[2:]))
    file = write_safetensors(tmp_path / "lora.safetensors", tensors)
    bake_files(path, [(file, 1.0)], tmp_path / "baked.safetensors")
    report = extract_files(
        tmp_path / "folder", tmp_path / "baked.safetensors", tmp_path / "x.safetensors", Form(rank=2)
    )
    assert dict(report.targets) == {"unet": 1, "text_encoder_2": 1}
    assert report.errors.total < 1e-3


def test_ranks_by_layer_and_components(base: Path, baked: Path) -> None:
    form = Form(rank=2, rules=(Rule.parse("conv1=1"),))
    report = extract_files(base, baked, None, form, components=["unet"])
    assert set(report.ranks) == {1, 2}
    assert set(report.targets) == {"unet"}
    twice = extract_files(base, baked, None, form, components=["unet", "unet"])
    assert (twice.unchanged, twice.errors) == (report.unchanged, report.errors)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda base, tmp: extract_files(base, base, None), "do not differ"),
        (lambda base, tmp: extract_files(base, base, None, components=["vae"]), "vae is not in both"),
        (
            lambda base, tmp: extract_files(base / "unet", base / "text_encoder", None),
            "no component is not in both",
        ),
        (
            lambda base, tmp: extract_files(base, single_file(tmp / "x.safetensors", False)[0], None),
            "architectures",
        ),
        (lambda base, tmp: Form(rank=2, energy=0.5), "An energy beside"),
        (lambda base, tmp: Form(rank=None), "got none of them"),
    ],
)
def test_requests_without_sense_are_refused(base: Path, tmp_path: Path, make: Any, said: str) -> None:
    with pytest.raises((StateError, LorryError), match=said):
        make(base, tmp_path)


def test_tokens_are_told_as_what_no_checkpoint_holds(base: Path, tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "lora.safetensors", 1)
    tensors = {**read_safetensors(lora).tensors, "bundle_emb.zuzu.clip_l": torch.ones(2, 32)}
    source = write_safetensors(tmp_path / "with_token.safetensors", tensors)
    report = bake_files(base, [(source, 1.0)], tmp_path / "out")
    assert "ignored, the token 'zuzu', which is in no checkpoint: bundle_emb.zuzu.clip_l" in str(report)
    json.dumps(report.as_dict())


def test_a_checkpoint_is_not_copied_into_itself(base: Path, tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "lora.safetensors", 1)
    before = sorted(base.rglob("*"))
    with pytest.raises(FileError, match=r"is inside .*which is copied: choose a place outside of it"):
        bake_files(base, [(lora, 1.0)], base / "unet" / "new")
    assert sorted(base.rglob("*")) == before
