"""Files of the Hub, from a stand-in server on this machine."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from files.hub_server import FakeHub
from lorry.errors import AdapterNotFoundError
from lorry.files import find_weights, read_adapter_file, write_safetensors


@pytest.fixture
def weights(tmp_path: Path) -> bytes:
    return write_safetensors(tmp_path / "w.safetensors", {"x.lora_A.weight": torch.ones(1, 2)}).read_bytes()


def test_a_named_file_is_downloaded_once_and_nothing_listed(fake_hub: FakeHub, weights: bytes) -> None:
    fake_hub.add("nerijs/pixel-art-xl", {"pixel-art-xl.safetensors": weights, "b.safetensors": b""})
    for _ in range(2):
        found = find_weights("nerijs/pixel-art-xl", weight_name="pixel-art-xl.safetensors")
        assert found.read_bytes() == weights
    assert not [request for request in fake_hub.requests if "/api/" in request]
    assert sum(request.startswith("GET") for request in fake_hub.requests) == 1


def test_without_a_name_the_repository_is_listed(fake_hub: FakeHub, weights: bytes) -> None:
    fake_hub.add("a/b", {"README.md": b"", "checkpoint-5/x.safetensors": b"", "toy.safetensors": weights})
    assert list(read_adapter_file("a/b").tensors) == ["x.lora_A.weight"]


def test_a_peft_repository_brings_its_config(fake_hub: FakeHub, weights: bytes) -> None:
    fake_hub.add("a/b", {"adapter_model.safetensors": weights, "adapter_config.json": b'{"lora_alpha": 3}'})
    assert read_adapter_file("a/b").config == {"lora_alpha": 3}
    fake_hub.add("a/c", {"adapter_model.safetensors": weights})
    assert read_adapter_file("a/c").config is None


def test_subfolder_and_revision_are_passed_on(fake_hub: FakeHub, weights: bytes) -> None:
    fake_hub.add("a/b", {"sub/x.safetensors": weights, "x.safetensors": b"other"}, revision="v2")
    assert find_weights("a/b", subfolder="sub", revision="v2").read_bytes() == weights
    assert find_weights("a/b", weight_name="x.safetensors", revision="v2").read_bytes() == b"other"
    with pytest.raises(AdapterNotFoundError, match="it has no revision 'v3'"):
        find_weights("a/b", revision="v3")
    with pytest.raises(AdapterNotFoundError, match="it has no revision 'main'"):
        find_weights("a/b", weight_name="x.safetensors")


def test_a_token_opens_a_private_repository(fake_hub: FakeHub, weights: bytes) -> None:
    fake_hub.add("a/b", {"x.safetensors": weights}, token="hf_secret")
    assert find_weights("a/b", token="hf_secret").read_bytes() == weights
    assert set(fake_hub.tokens) == {"hf_secret"}
    with pytest.raises(AdapterNotFoundError, match="neither such a repository on the Hub nor such a folder"):
        find_weights("a/b", token=False, force_download=True)
    assert fake_hub.tokens[-1] is None


def test_a_gated_repository_says_so(fake_hub: FakeHub, weights: bytes) -> None:
    fake_hub.add("a/b", {"x.safetensors": weights}, token="hf_secret", gated=True)
    with pytest.raises(AdapterNotFoundError, match="access to it must be asked for"):
        find_weights("a/b", token="hf_other")


def test_the_cache_serves_without_the_network(fake_hub: FakeHub, weights: bytes, tmp_path: Path) -> None:
    fake_hub.add("a/b", {"toy.safetensors": weights})
    with pytest.raises(AdapterNotFoundError, match="`local_files_only=True` allows no download"):
        find_weights("a/b", local_files_only=True, cache_dir=tmp_path / "c")
    with pytest.raises(AdapterNotFoundError, match="`local_files_only=True` allows no download"):
        find_weights("a/b", weight_name="toy.safetensors", local_files_only=True, cache_dir=tmp_path / "c")
    assert not fake_hub.requests
    find_weights("a/b", cache_dir=tmp_path / "c")
    fake_hub.requests.clear()
    for name in (None, "toy.safetensors"):
        found = find_weights("a/b", weight_name=name, local_files_only=True, cache_dir=tmp_path / "c")
        assert found.read_bytes() == weights
        assert found.is_relative_to(tmp_path / "c")
    assert not fake_hub.requests


def test_force_download_downloads_again(fake_hub: FakeHub, weights: bytes) -> None:
    fake_hub.add("a/b", {"toy.safetensors": weights})
    find_weights("a/b")
    find_weights("a/b", force_download=True)
    assert sum(request == "GET /a/b/resolve/main/toy.safetensors" for request in fake_hub.requests) >= 1
    assert (
        sum("toy.safetensors" in request and request.startswith("GET") for request in fake_hub.requests) == 2
    )


def test_a_wrong_weight_name_is_corrected(fake_hub: FakeHub, weights: bytes) -> None:
    fake_hub.add("a/b", {"toy_face_sdxl.safetensors": weights, "README.md": b""})
    with pytest.raises(
        AdapterNotFoundError,
        match=r"has no file 'toy_face.safetensors'. Did you mean 'toy_face_sdxl.safetensors'\?",
    ):
        find_weights("a/b", weight_name="toy_face.safetensors")


def test_an_unknown_repository_and_an_impossible_name_are_explained(fake_hub: FakeHub) -> None:
    with pytest.raises(AdapterNotFoundError, match="Check the spelling") as caught:
        find_weights("no/body", weight_name="x.safetensors")
    assert caught.value.__cause__ is not None
    with pytest.raises(AdapterNotFoundError, match="nor a name that a repository can have"):
        find_weights("no--body/..x")


def test_an_unreachable_hub_is_explained(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # huggingface_hub tries several times
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    with pytest.raises(AdapterNotFoundError, match="the Hub cannot be reached"):
        find_weights("a/b", weight_name="x.safetensors")
    with pytest.raises(AdapterNotFoundError, match="cannot be had"):
        find_weights("a/b")
