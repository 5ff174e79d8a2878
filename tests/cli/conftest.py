"""A random tiny pipeline on the disk and adapters for it, in the place of what lorry ships."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import lorry.assets
from cli.runs import write_lora
from models import tiny_sd_pipeline


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """The shipped model sets torch's number of threads, which lasts as long as the process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Stable Diffusion pipeline."""
    folder = tmp_path_factory.mktemp("base")
    tiny_sd_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two styles, and an adapter that teaches two words."""
    folder = tmp_path_factory.mktemp("loras")
    write_lora(folder / "ink.safetensors", 1, {"modelspec.title": "Ink"})
    write_lora(folder / "wax.safetensors", 2, rank=4)
    write_lora(folder / "words.safetensors", 3, {"modelspec.trigger_phrase": "abra, dabra"})
    return folder


@pytest.fixture
def shipped(tiny_base: Path, loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lets the random pipeline and its adapters stand in the place of those that lorry ships."""
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "tinybase").symlink_to(tiny_base)
    (tmp_path / "assets" / "loras").symlink_to(loras)
    monkeypatch.setattr(lorry.assets, "_HERE", tmp_path / "assets")
    return tmp_path / "assets"
