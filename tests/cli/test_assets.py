"""The shipped files, and what is said where they are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

import lorry.assets
from lorry.errors import AdapterNotFoundError, FileError


def test_adapters_are_found_by_name(shipped: Path) -> None:
    assert list(lorry.assets.lora_files()) == ["ink", "wax", "words"]
    assert lorry.assets.lora_file("wax") == shipped / "loras" / "wax.safetensors"


def test_an_adapter_that_is_not_shipped_is_an_error(shipped: Path) -> None:
    with pytest.raises(AdapterNotFoundError, match=r"it has ink, wax, words\. Did you mean 'wax'\?"):
        lorry.assets.lora_file("waxx")


def test_an_installation_without_its_files_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lorry.assets, "_HERE", tmp_path)
    with pytest.raises(FileError, match="Install lorry again"):
        lorry.assets.base_folder()
    with pytest.raises(FileError, match="Install lorry again"):
        lorry.assets.lora_files()
