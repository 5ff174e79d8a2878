"""`lorry library`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from cli.runs import bad_lora, lorry_says
from lorry.cli.grid import Panel, draw_grid
from lorry.files import weights_hash, write_safetensors


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORRY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "library.json"


def test_a_folder_is_listed_and_known_the_next_time(loras: Path, own_cache: Path) -> None:
    result = lorry_says("library", loras)
    assert "ink: Ink, LoRA rank 2, text_encoder+unet" in result.stdout
    assert "words: Ink" not in result.stdout
    assert "words: abra, dabra" in result.stdout
    assert "3 adapters; 3 headers read" in result.stdout
    assert own_cache.is_file()
    assert "3 adapters; 0 headers read" in lorry_says("library", loras).stdout
    assert "3 headers read" in lorry_says("library", loras, "--again").stdout


def test_words_hashes_and_copies_are_asked_for(loras: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(loras, folder)
    shutil.copy(folder / "ink.safetensors", folder / "ink copy.safetensors")
    result = lorry_says("library", folder, "--search", "ink", "--hashes", "--duplicates")
    assert "the same weights: ink copy, ink" in result.stdout
    assert weights_hash(folder / "ink.safetensors")[:12] in result.stdout
    assert "2 of 4 adapters" in result.stdout
    assert "wax" not in result.stdout


def test_a_link_that_leads_nowhere_is_listed_and_the_others_have_their_hashes(
    loras: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(loras, folder)
    (folder / "gone.safetensors").symlink_to(folder / "nowhere")
    result = lorry_says("library", folder, "--hashes", "--duplicates")
    assert result.exit_code == 0, result.output
    assert "gone.safetensors: the file cannot be opened: No such file or directory." in result.stdout
    assert weights_hash(folder / "ink.safetensors")[:12] in result.stdout


def test_what_is_no_adapter_is_listed_and_not_counted(loras: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(loras, folder)
    write_safetensors(folder / "vae.safetensors", {"decoder.conv_in.weight": torch.ones(8, 4, 3, 3)})
    result = lorry_says("library", folder)
    assert f"vae: {folder}/vae.safetensors is " in result.stdout.replace("\n", " ")
    assert "3 adapters and 1 that lorry cannot apply; 4 headers read" in result.stdout
    said = json.loads(lorry_says("library", folder, "--json").stdout)
    assert [one["name"] for one in said["adapters"]] == ["ink", "wax", "words"]
    assert [one["name"] for one in said["others"]] == ["vae"]
    assert "0 of 3 adapters; 0 headers" in lorry_says("library", folder, "--search", "nothing").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--prompt", "a cat"), "`--prompt` without `--sheet FILE`: it would do nothing"),
        (("--base", "shipped", "--seed", "0"), "`--base`, `--seed` without `--sheet FILE`"),
    ],
)
def test_what_is_for_the_sheet_alone_is_refused_without_it(
    loras: Path, words: tuple[str, ...], said: str
) -> None:
    result = lorry_says("library", loras, *words)
    assert result.exit_code == 2
    assert said in re.sub(r"[\s│]+", " ", result.stderr)


def test_json_has_all_of_it(loras: Path) -> None:
    said = json.loads(lorry_says("library", loras, "--json", "--duplicates").stdout)
    assert [one["name"] for one in said["adapters"]] == ["ink", "wax", "words"]
    assert said["adapters"][2]["words"] == ["abra", "dabra"]
    assert said["duplicates"] == []


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    result = lorry_says("library", tmp_path / "gone")
    assert result.exit_code == 1
    assert "there is no such folder" in result.stderr


def test_a_contact_sheet_shows_each_adapter_and_says_which_do_not_fit(
    shipped: Path, loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(loras, tmp_path / "mine")
    bad_lora(tmp_path / "mine" / "bad.safetensors")
    seen: list[Panel] = []
    monkeypatch.setattr(
        "lorry.cli.contact.draw_grid", lambda panels: seen.extend(panels) or draw_grid(panels)
    )
    monkeypatch.setattr("lorry.cli.contact.SHIPPED_STEPS", 2)
    result = lorry_says(
        "library", tmp_path / "mine", "--sheet", tmp_path / "new" / "sheet.png", "--prompt", "a {words} cat"
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "new" / "sheet.png").is_file()
    (panel,) = seen
    assert list(panel.columns) == ["no adapter", "bad", "ink", "wax", "words"]
    plain, bad, ink, *_ = (panel.cells[0, column] for column in range(5))
    assert isinstance(plain, Image.Image) and isinstance(ink, Image.Image)  # noqa: PT018
    assert plain.tobytes() != ink.tobytes()
    assert bad == "does not fit this base model"
    assert "the delta is (99, 99)" in result.stderr
