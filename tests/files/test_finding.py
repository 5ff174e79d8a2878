"""Local files and folders: which file is meant, and no network for any of it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch

from lorry.errors import AdapterNotFoundError, BrokenFileError
from lorry.files import find_weights, read_adapter_file, read_weights, write_safetensors

TENSORS = {"x.lora_A.weight": torch.ones(1, 2)}


@pytest.fixture(autouse=True)
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a local path must not reach for the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def filled(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            write_safetensors(path, TENSORS)
        elif name.endswith(".json"):
            path.write_text('{"r": 4}')
        else:
            torch.save(TENSORS, path)
    return folder


def test_a_file_is_itself(tmp_path: Path) -> None:
    path = filled(tmp_path, "some.safetensors") / "some.safetensors"
    assert find_weights(path) == path
    assert find_weights(str(path), subfolder="whatever", revision="main", token="t") == path


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (
            ["adapter_model.safetensors", "adapter_config.json", "other.safetensors"],
            "adapter_model.safetensors",
        ),
        (["pytorch_lora_weights.safetensors", "other.safetensors"], "pytorch_lora_weights.safetensors"),
        (["other.safetensors"], "other.safetensors"),
        (
            [
                "other.safetensors",
                "optimizer.safetensors",
                "scheduler.safetensors",
                "checkpoint-5.safetensors",
            ],
            "other.safetensors",
        ),
        (["other.safetensors", "pytorch_lora_weights.bin"], "other.safetensors"),
        (["pytorch_lora_weights.bin", "optimizer.bin", "x.pt"], "pytorch_lora_weights.bin"),
        (["x.pt"], "x.pt"),
    ],
)
def test_the_adapter_of_a_folder_is_found(names: list[str], chosen: str, tmp_path: Path) -> None:
    assert find_weights(filled(tmp_path, *names)) == tmp_path / chosen


def test_several_adapters_in_a_folder_are_listed(tmp_path: Path) -> None:
    with pytest.raises(
        AdapterNotFoundError,
        match=r"several adapters: 'a.safetensors', 'b.safetensors'. Say which with `weight_name=",
    ):
        find_weights(filled(tmp_path, "a.safetensors", "b.safetensors"))


def test_a_folder_without_an_adapter_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("")
    with pytest.raises(AdapterNotFoundError, match=r"no adapter file. It holds: readme.md"):
        find_weights(tmp_path)


def test_an_index_stands_for_its_parts(tmp_path: Path) -> None:
    filled(tmp_path, "m-00001-of-00002.safetensors", "m.safetensors.index.json", "readme.md")
    assert find_weights(tmp_path) == tmp_path / "m.safetensors.index.json"
    filled(tmp_path, "other-00001-of-00002.safetensors")
    with pytest.raises(AdapterNotFoundError, match=r"'m.safetensors.index.json', 'other-00001-of-00002.saf"):
        find_weights(tmp_path)


def test_pickles_in_parts_are_refused(tmp_path: Path) -> None:
    filled(tmp_path, "m-00001-of-00002.bin", "m.bin.index.json")
    with pytest.raises(AdapterNotFoundError, match=r"several pickles \(m.bin.index.json\)"):
        find_weights(tmp_path)


def test_use_safetensors_chooses_the_container(tmp_path: Path) -> None:
    filled(tmp_path, "a.safetensors", "b.bin")
    assert find_weights(tmp_path, use_safetensors=True).name == "a.safetensors"
    assert find_weights(tmp_path, use_safetensors=False).name == "b.bin"
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(AdapterNotFoundError, match=r"holds no safetensors file.* A pickle is there"):
        find_weights(tmp_path, use_safetensors=True)
    with pytest.raises(
        AdapterNotFoundError, match=r"b.bin is a pickle, and `use_safetensors=True` allows none"
    ):
        find_weights(tmp_path / "b.bin", use_safetensors=True)
    with pytest.raises(AdapterNotFoundError, match=r"b.bin is a pickle"):
        find_weights(tmp_path, weight_name="b.bin", use_safetensors=True)


def test_a_weight_name_in_a_subfolder_is_found_and_a_wrong_one_corrected(tmp_path: Path) -> None:
    filled(tmp_path, "sub/pixel-art.safetensors", "sub/toy.safetensors")
    found = find_weights(tmp_path, weight_name="toy.safetensors", subfolder="sub")
    assert found == tmp_path / "sub" / "toy.safetensors"
    with pytest.raises(
        AdapterNotFoundError, match=r"no file 'pixelart.safetensors'. Did you mean 'pixel-art.safetensors'\?"
    ):
        find_weights(tmp_path, weight_name="pixelart.safetensors", subfolder="sub")
    with pytest.raises(AdapterNotFoundError, match="no weights"):
        find_weights(tmp_path, weight_name="toy.safetensors", subfolder="gone")


@pytest.mark.parametrize("name", ["./no/such", "/no/such/file", "no/such.safetensors", "a/b/c", "x.bin"])
def test_what_can_only_be_a_path_never_reaches_for_the_hub(name: str) -> None:
    with pytest.raises(AdapterNotFoundError, match="there is no such file or folder"):
        find_weights(name)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("https://example.org/api/download/1", "download the file and pass its path"),
        ("https://huggingface.co/a/b", r"pass 'a/b'\."),
        (
            "https://huggingface.co/a/b/blob/main/x.safetensors?download=true",
            r"pass 'a/b' and `weight_name='x.safetensors'`\.",
        ),
        ("https://hf.co/a/b/resolve/v2/c/x.bin", r"and `weight_name='c/x.bin'` and `revision='v2'`\."),
    ],
)
def test_an_address_on_the_web_is_put_right(address: str, said: str) -> None:
    with pytest.raises(AdapterNotFoundError, match=said):
        find_weights(address)


def test_a_misspelt_path_brings_the_name_of_its_neighbour(tmp_path: Path) -> None:
    filled(tmp_path, "pixel-art.safetensors")
    with pytest.raises(AdapterNotFoundError, match=r"Did you mean 'pixel-art.safetensors'\?"):
        find_weights(tmp_path / "pixelart.safetensors")
    with pytest.raises(AdapterNotFoundError, match=r"There is no folder .*gone either"):
        find_weights(tmp_path / "gone" / "x.safetensors")


def test_a_file_of_the_hub_written_as_a_path_is_put_right() -> None:
    with pytest.raises(
        AdapterNotFoundError, match=r"pass 'CiroN2022/toy-face' and `weight_name='toy_face_sdxl.safetensors'`"
    ):
        find_weights("CiroN2022/toy-face/toy_face_sdxl.safetensors")


def test_arguments_that_the_hub_dropped_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    find_weights(
        filled(tmp_path, "a.safetensors"), resume_download=True, proxies={"https": "x"}, mirror="tuna"
    )
    assert [record.getMessage().split("`")[1] for record in caplog.records] == [
        "resume_download",
        "proxies",
        "mirror",
    ]


def test_the_config_beside_a_peft_adapter_is_read(tmp_path: Path) -> None:
    filled(tmp_path, "adapter_model.safetensors", "adapter_config.json", "other.safetensors")
    assert read_adapter_file(tmp_path).config == {"r": 4}
    assert read_adapter_file(tmp_path / "other.safetensors").config is None


def test_a_config_that_is_no_json_is_named(tmp_path: Path) -> None:
    filled(tmp_path, "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(BrokenFileError, match=r"adapter_config.json: expected JSON"):
        read_adapter_file(tmp_path)


def test_peft_folders_by_component_are_read_as_one_file(tmp_path: Path) -> None:
    for name in ("unet", "text_encoder"):
        filled(tmp_path / name, "adapter_model.safetensors", "adapter_config.json")
    found = read_adapter_file(tmp_path)
    assert sorted(found.tensors) == ["text_encoder.x.lora_A.weight", "unet.x.lora_A.weight"]
    assert json.loads(found.metadata["lora_adapter_metadata"]) == {"unet.r": 4, "text_encoder.r": 4}


def test_the_container_is_known_by_its_content_where_the_name_says_nothing(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "download", TENSORS)
    assert list(read_weights(tmp_path / "download").tensors) == list(TENSORS)
    (tmp_path / "notes.txt").write_text("a text")
    with pytest.raises(BrokenFileError, match=r"expected a file that ends in .safetensors"):
        read_weights(tmp_path / "notes.txt")


@pytest.mark.parametrize("given", ["text_encoder", "text_encoder/adapter_model.safetensors"])
def test_a_peft_folder_named_after_a_component_is_for_that_component(tmp_path: Path, given: str) -> None:
    folder = tmp_path / "text_encoder"
    folder.mkdir()
    key = "base_model.model.encoder.layers.0.mlp.fc1.lora_A.weight"
    write_safetensors(folder / "adapter_model.safetensors", {key: torch.ones(2, 3)}, {})
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    file = read_adapter_file(tmp_path / given)
    assert list(file.tensors) == [f"text_encoder.{key}"]
    assert json.loads(file.metadata["lora_adapter_metadata"])["text_encoder.lora_alpha"] == 4


@pytest.mark.parametrize("name", ["../x.safetensors", "/tmp/x.safetensors", "sub/../../x.safetensors"])
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    write_safetensors(tmp_path / "x.safetensors", {"x": torch.ones(1)})
    with pytest.raises(AdapterNotFoundError, match=r"`weight_name=.*` leads out of the folder"):
        find_weights(tmp_path / "inside", weight_name=name)
    with pytest.raises(AdapterNotFoundError, match=r"`subfolder='\.\.'` leads out of the folder"):
        find_weights(tmp_path / "inside", subfolder="..")


def test_a_config_of_deep_nesting_is_refused(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "adapter_model.safetensors", {"x": torch.ones(1)})
    (tmp_path / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(BrokenFileError, match=r"adapter_config\.json: expected JSON, got"):
        read_weights(tmp_path / "adapter_model.safetensors")


def test_links_are_followed_as_those_of_the_hubs_cache_must_be(tmp_path: Path) -> None:
    filled(tmp_path / "blobs", "content.safetensors")
    snapshot = tmp_path / "snapshots"
    snapshot.mkdir()
    link = snapshot / "pytorch_lora_weights.safetensors"
    link.symlink_to(Path("..") / "blobs" / "content.safetensors")
    (tmp_path / "main").symlink_to(snapshot)
    for given in (link, snapshot, tmp_path / "main"):
        assert torch.equal(read_adapter_file(given).tensors["x.lora_A.weight"], torch.ones(1, 2))
    link.unlink()
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(AdapterNotFoundError, match="holds no adapter file"):
        read_adapter_file(snapshot)
