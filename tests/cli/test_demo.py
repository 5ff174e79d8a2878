"""`lorry demo`: what it draws and writes, and that its checks are checks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import lorry.assets
from cli.runs import lorry_says, write_lora
from lorry.cli.demo import command, story
from lorry.cli.demo.studio import Snapshot
from lorry.errors import LorryError, UnknownDialectError
from lorry.files import write_safetensors
from lorry.patching import AdapterState
from lorry.pipelines import LoraLoaderMixin, attach
from models import tiny_sd_pipeline


def run(out: Path) -> story.Story:
    return command.run_demo(out, steps=2)


def failed_checks(out: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The promises that a demo tells are broken, on its own lines, and in its error, and in red on its sheet."""
    with pytest.raises(LorryError, match=r"of \d+ checks failed") as raised:
        run(out)
    broken = [
        line.removesuffix(": NO") for line in capsys.readouterr().out.splitlines() if line.endswith(": NO")
    ]
    assert broken
    assert all(promise in str(raised.value) for promise in broken)
    assert (out / command.SHEET_NAME).is_file()
    return broken


def test_it_draws_the_base_each_style_the_mixes_fused_unfused_and_unloaded(
    shipped: Path, tmp_path: Path
) -> None:
    told = run(tmp_path)
    styles, words = told.sections
    assert [row.title for row in styles.rows] == [
        "no adapter",
        "ink 1",
        "wax 1",
        "ink 0.8 + wax 0.2",
        "ink 0.5 + wax 0.5",
        "ink 0.2 + wax 0.8",
        "the same, fused",
        "unfused again",
        "all unloaded",
    ]
    assert [row.title for row in words.rows] == ["no adapter", "words 1", "words 1 + ink 0.6"]
    assert words.prompts[:2] == ("a abra", "a dabra")
    assert all(check.kept for check in told.checks)


def test_every_row_draws_something_else_but_those_that_must_not(shipped: Path, tmp_path: Path) -> None:
    rows = run(tmp_path).sections[0].rows
    kept = {"unfused again": "ink 0.2 + wax 0.8", "all unloaded": "no adapter"}
    by_title = {row.title: row.pictures for row in rows}
    for (one, first), (other, second) in itertools.combinations(by_title.items(), 2):
        assert first.same_bits(second) == (kept.get(other) == one), (one, other)


def test_the_sheet_and_the_single_pictures_are_written(shipped: Path, tmp_path: Path) -> None:
    told = run(tmp_path / "new" / "folder")
    singles = list((tmp_path / "new" / "folder" / "pictures").iterdir())
    assert len(singles) == sum(len(section.rows) * len(section.prompts) for section in told.sections)
    with Image.open(tmp_path / "new" / "folder" / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 8 * 2 * 16


def test_reports_checks_and_timings_are_printed(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path)
    printed = capsys.readouterr().out
    for said in (
        "ink: diffusers,",
        "words: diffusers,",
        "unfused, pictures equal those before fusing, bit for bit: yes",
        "every weight, module class and hook is what it was: yes",
        "fuse two adapters",
        "draw a picture, no adapter",
        str(tmp_path / "sheet.png"),
    ):
        assert said in printed


def test_the_bar_ends_full(shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    assert "100 %" in capsys.readouterr().err


def test_weights_that_do_not_come_back_from_unfusing_are_told(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unfuse = LoraLoaderMixin.unfuse_lora

    def drifting(pipeline: Any) -> None:
        unfuse(pipeline)
        with torch.no_grad():
            pipeline.unet.conv_in.weight.mul_(1 + 1e-6)

    monkeypatch.setattr(LoraLoaderMixin, "unfuse_lora", drifting)
    broken = failed_checks(tmp_path, capsys)
    assert any("unfused, pictures" in promise for promise in broken)
    assert any("unloaded, pictures" in promise for promise in broken)
    assert any("every weight" in promise for promise in broken)


def test_an_adapter_that_does_nothing_is_told(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_active = AdapterState.set_active
    monkeypatch.setattr(
        AdapterState,
        "set_active",
        lambda self, s, undo: set_active(self, {} if "ink" in s and len(s) == 1 else s, undo),
    )
    assert failed_checks(tmp_path, capsys) == ["ink changes every picture"]


def test_an_adapter_that_stays_behind_is_told(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        LoraLoaderMixin, "unload_lora_weights", lambda self: self.set_adapters(["ink"], [0.0])
    )
    broken = failed_checks(tmp_path, capsys)
    assert any("every weight, module class" in promise for promise in broken)


def test_fusing_at_a_wrong_strength_is_told(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fuse = LoraLoaderMixin.fuse_lora
    monkeypatch.setattr(LoraLoaderMixin, "fuse_lora", lambda self: fuse(self, lora_scale=0.5))
    assert [promise[:5] for promise in failed_checks(tmp_path, capsys)] == ["fused"]


def test_a_broken_check_ends_the_command_with_1(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Snapshot, "same_bits", lambda self, other: False)
    monkeypatch.setattr("lorry.cli.demo.run_demo", run)
    result = lorry_says("demo", "--out", tmp_path)
    assert result.exit_code == 1
    assert "error: 1 of" in result.stderr


def change_a_bit(pipeline: Any) -> None:
    weight = pipeline.vae.decoder.conv_out.weight.data
    weight.view(torch.int32).view(-1)[0] ^= 1


def add_a_hook(pipeline: Any) -> None:
    pipeline.text_encoder.register_forward_hook(lambda *_: None)


def add_a_buffer(pipeline: Any) -> None:
    pipeline.unet.mid_block.register_buffer("left_behind", torch.zeros(1), persistent=False)


def change_a_class(pipeline: Any) -> None:
    layer = pipeline.unet.conv_in
    layer.__class__ = type("Conv2d", (type(layer),), {})


@pytest.mark.parametrize("change", [change_a_bit, add_a_hook, add_a_buffer, change_a_class])
def test_a_snapshot_sees_every_change(change: Any) -> None:
    pipeline = attach(tiny_sd_pipeline())
    before = Snapshot.of(pipeline)
    assert Snapshot.of(pipeline).same_bits(before)
    change(pipeline)
    assert not Snapshot.of(pipeline).same_bits(before)


@pytest.mark.parametrize(
    ("metadata", "titles"),
    [
        ({"ink": {}}, [["no adapter", "ink 1", "all unloaded"]]),
        (
            {"words": {"modelspec.trigger_phrase": "abra"}},
            [["no adapter", "all unloaded"], ["no adapter", "words 1"]],
        ),
    ],
)
def test_fewer_adapters_make_a_shorter_story(
    shipped: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    metadata: Mapping[str, dict[str, str]],
    titles: list[list[str]],
) -> None:
    files = {name: write_lora(tmp_path / f"{name}.safetensors", 4, given) for name, given in metadata.items()}
    monkeypatch.setattr(command, "lora_files", lambda: files)
    told = run(tmp_path)
    assert [[row.title for row in section.rows] for section in told.sections] == titles
    assert "100 %" in capsys.readouterr().err


def test_an_adapter_in_no_dialect_stops_the_demo_before_it_draws(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "odd.safetensors", {"what.is.this": torch.zeros(3)})
    with pytest.raises(UnknownDialectError, match="is in no dialect"):
        story.cast_of({"odd": path})


def test_line_and_pixel_are_mixed_where_they_are_there(tmp_path: Path) -> None:
    names = ("anchor", "line", "pixel")
    cast = story.cast_of({name: write_lora(tmp_path / f"{name}.safetensors", 1) for name in names})
    assert cast.mixed == ("line", "pixel")


def test_the_shipped_files_are_there_and_are_adapters() -> None:
    cast = story.cast_of(lorry.assets.lora_files())
    assert len(cast.styles) >= 2
    assert (lorry.assets.base_folder() / "model_index.json").is_file()
