"""The hashes by which other programs know a file, as they compute them."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lorry.errors import AdapterNotFoundError
from lorry.files import hash_file, write_safetensors

TENSORS = {"a": torch.arange(400_000, dtype=torch.float32), "b": torch.ones(3)}
TEXT = {"ss_steps": "7", "title": "x"}


def test_a_safetensors_file(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", TENSORS, TEXT)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found = hash_file(path)
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert found.autov2 == found.sha256[:10]
    assert found.autov1 == hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    assert found.autov3 == hashlib.sha256(data[start:]).hexdigest()[:12]
    for said in (found.autov1, found.autov2, found.autov3):
        assert str(said) in str(found)


def test_kohyas_are_of_the_file_with_its_own_texts_alone(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", TENSORS, TEXT)
    theirs = io.BytesIO(safetensors.torch.save(TENSORS, {"ss_steps": "7"})).getvalue()
    start = 8 + int.from_bytes(theirs[:8], "little")
    found = hash_file(path)
    assert found.sshs_model_hash == hashlib.sha256(theirs[start:]).hexdigest()
    assert found.sshs_legacy_hash == hashlib.sha256(theirs[0x100000:0x110000]).hexdigest()[:8]


def test_a_pickle_has_those_of_bytes_only(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"abc")
    found = hash_file(path)
    assert (found.autov3, found.sshs_model_hash) == (None, None)
    assert found.autov2 == hashlib.sha256(b"abc").hexdigest()[:10]
    with pytest.raises(AdapterNotFoundError, match="cannot be opened"):
        hash_file(tmp_path / "no.safetensors")
