"""A folder of adapters: listed from headers, known the next time, searched, and its copies found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorry.adapters import Adapter
from lorry.dialects import get_dialect
from lorry.errors import AdapterNotFoundError
from lorry.files import TensorFile, write_safetensors
from lorry.names import Target
from lorry.workflows.library import Facts, Library, find_duplicates, hash_adapter, scan_library
from lorry.workflows.library.facts import facts_of
from models import as_adapter, random_delta, random_deltas, tiny_unet


def adapter(seed: int = 0, rank: int = 3) -> Adapter:
    return as_adapter(random_deltas(tiny_unet(), seed, ["to_q", "conv1"], rank, alpha=2.0))


def write(path: Path, dialect: str = "kohya", seed: int = 0, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    file: TensorFile = get_dialect(dialect).write(adapter(seed))
    return write_safetensors(path, file.tensors, {**file.metadata, **(metadata or {})})


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    folder = tmp_path / "shelf"
    write(
        folder / "ink.safetensors",
        seed=1,
        metadata={"modelspec.title": "Ink", "ss_base_model_version": "sd_v1"},
    )
    write(folder / "styles" / "wax.safetensors", seed=2, metadata={"modelspec.trigger_phrase": "wax, candle"})
    return folder


def scan(folder: Path, **kwargs: object) -> Library:
    return scan_library(folder, cache=folder.parent / "cache" / "library.json", **kwargs)  # pyright: ignore[reportArgumentType]


def test_an_entry_says_what_the_header_says(shelf: Path) -> None:
    ink, wax = scan(shelf).entries
    assert (ink.name, ink.title, ink.base, ink.words) == ("ink", "Ink", "sd_v1", ())
    assert (ink.facts.families, ink.facts.ranks, ink.facts.dialect) == (("LoRA",), (3,), "kohya")
    assert ink.size == (shelf / "ink.safetensors").stat().st_size
    assert (wax.name, wax.title, wax.words) == ("styles/wax", "styles/wax", ("wax", "candle"))
    assert "LoRA rank 3" in str(wax) and "words: wax, candle" in str(wax)  # noqa: PT018


def test_the_layers_tell_the_base_model_whatever_the_metadata_say(tmp_path: Path) -> None:
    layers = {"down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (640, 2048)}
    deltas = {name: random_delta(shape) for name, shape in layers.items()}
    file = get_dialect("kohya").write(as_adapter(deltas))
    (tmp_path / "shelf").mkdir()
    write_safetensors(
        tmp_path / "shelf" / "a.safetensors", file.tensors, {"ss_base_model_version": "Illustrious"}
    )
    library = scan(tmp_path / "shelf")
    assert (library.entries[0].base, library.entries[0].facts.base) == ("SDXL", "Illustrious")
    assert library.search("sdxl") == library.search("illustrious") == library.entries


def test_a_pickle_is_listed_by_its_tensors_and_its_code_is_not_run(shelf: Path) -> None:
    file = get_dialect("kohya").write(adapter(1))
    torch.save(dict(file.tensors), shelf / "old.pt")
    torch.save({"x": print}, shelf / "code.pt")
    listed = {entry.name: entry.facts for entry in scan(shelf).entries}
    assert (listed["old"].families, listed["old"].ranks) == (("LoRA",), (3,))
    assert "one that would run" in (listed["code"].problem or "")
    groups = find_duplicates(scan(shelf).entries)
    assert [[entry.name for entry in group] for group in groups] == [["ink", "old"]]


def test_no_weight_is_read(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("mmap.mmap", read)
    assert len(scan(shelf).entries) == 2


def test_headers_are_read_once_and_again_when_a_file_changes(shelf: Path) -> None:
    read: list[str] = []

    def counted(path: Path) -> Facts:
        read.append(path.stem)
        return facts_of(path)

    first, second = scan(shelf, read=counted), scan(shelf, read=counted)
    assert (read, first.read, second.read) == (["ink", "wax"], 2, 0)
    assert first.entries == second.entries
    write(shelf / "ink.safetensors", seed=5, metadata={"modelspec.title": "Other ink"})
    assert [entry.title for entry in scan(shelf, read=counted).entries] == ["Other ink", "styles/wax"]
    assert read == ["ink", "wax", "ink"]
    assert scan(shelf, read=counted, again=True).read == 2


def test_files_that_are_gone_are_forgotten_and_those_of_other_folders_are_kept(
    shelf: Path, tmp_path: Path
) -> None:
    write(tmp_path / "other" / "far.safetensors")
    cache = tmp_path / "cache" / "library.json"
    scan(shelf)
    scan(tmp_path / "other")
    (shelf / "ink.safetensors").unlink()
    assert [entry.name for entry in scan(shelf).entries] == ["styles/wax"]
    assert {Path(name).stem for name in json.loads(cache.read_text())["files"]} == {"wax", "far"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"version": 2}',
        '{"version": 2, "files": {"x": {"facts": 3}}}',
        '{"version": 0, "files": 3}',
    ],
)
def test_a_damaged_cache_is_no_cache(shelf: Path, text: str) -> None:
    expected = scan(shelf).entries
    (shelf.parent / "cache" / "library.json").write_text(text)
    assert scan(shelf).entries == expected
    assert scan(shelf).read == 0


def test_a_cache_that_cannot_be_written_does_no_harm(shelf: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert len(scan_library(shelf, cache=tmp_path / "file" / "library.json").entries) == 2


def test_the_files_beside_an_adapter_are_understood(shelf: Path) -> None:
    site = {
        "baseModel": "SDXL 1.0",
        "trainedWords": ["ink style, ", "drop"],
        "model": {"name": "Ink of the deep"},
    }
    (shelf / "ink.civitai.info").write_text(json.dumps(site))
    ink = scan(shelf).entries[0]
    assert (ink.title, ink.base, ink.words, ink.beside.strength) == (
        "Ink of the deep",
        "sd_v1",
        ("ink style", "drop"),
        None,
    )
    user = {"activation text": "inky", "preferred weight": 0.7, "notes": "for skies", "sd version": "SDXL"}
    (shelf / "ink.json").write_text("\ufeff" + json.dumps(user), "utf-8")
    (shelf / "ink.preview.png").write_bytes(b"")
    ink = scan(shelf).entries[0]
    assert (ink.words, ink.beside.strength, ink.beside.note) == (("inky",), 0.7, "for skies")
    assert ink.beside.preview == str(shelf / "ink.preview.png")


@pytest.mark.parametrize("text", ["{", "[1]", "\x00", '{"model": 3, "trainedWords": 5, "baseModel": []}'])
def test_a_damaged_file_beside_an_adapter_is_told_and_does_no_harm(shelf: Path, text: str) -> None:
    (shelf / "ink.civitai.info").write_text(text)
    ink = scan(shelf).entries[0]
    assert ink.title == "Ink"
    assert bool(ink.beside.remarks) == (not text.startswith('{"'))


def test_files_that_are_no_adapters_are_listed_with_the_reason(shelf: Path) -> None:
    (shelf / "broken.safetensors").write_bytes(b"no")
    (shelf / "old.pt").write_bytes(b"")
    write_safetensors(shelf / "strange.safetensors", {"x": torch.ones(2)})
    (shelf / ".hidden.safetensors").write_bytes(b"")
    problems = {entry.name: entry.facts.problem for entry in scan(shelf).entries if entry.facts.problem}
    assert problems.keys() == {"broken", "old", "strange"}
    assert "is in no dialect that lorry knows" in (problems["strange"] or "")


def test_links_that_lead_nowhere_or_back_do_no_harm(shelf: Path) -> None:
    before = [entry.name for entry in scan(shelf).entries]
    (shelf / "gone.safetensors").symlink_to(shelf / "nowhere.safetensors")
    (shelf / "styles" / "up").symlink_to(shelf)
    other = write(shelf.parent / "other" / "pen.safetensors", seed=3).parent
    (shelf / "linked").symlink_to(other)
    (other / "back").symlink_to(shelf / "styles")
    (shelf / "styles" / "on").symlink_to(other)
    found = {entry.name: entry for entry in scan(shelf).entries}
    assert found.keys() == {*before, "gone", "linked/pen", "linked/back/wax", "styles/on/pen"}
    assert "No such file" in str(found["gone"])
    write(shelf / "nowhere.safetensors", seed=4)
    assert {entry.name: entry for entry in scan(shelf).entries}["gone"].facts.targets


def test_search_finds_entries_that_all_words_are_said_of(shelf: Path) -> None:
    library = scan(shelf)
    assert [entry.name for entry in library.search("CANDLE lora")] == ["styles/wax"]
    assert [entry.name for entry in library.search("sd_v1")] == ["ink"]
    assert len(library.search("lora")) == 2
    assert library.search("lora nothing") == ()


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFoundError, match="there is no such folder"):
        scan(tmp_path / "gone")


def test_names_are_those_of_the_files_and_two_alike_need_their_folder(shelf: Path) -> None:
    write(shelf / "old" / "wax.safetensors")
    names = scan(shelf).names()
    assert names.get("INK.safetensors") == shelf / "ink.safetensors"
    assert names.get("styles/wax") == shelf / "styles" / "wax.safetensors"
    with pytest.raises(AdapterNotFoundError, match=r"'wax' means 2 files .* Write the folder too"):
        names.get("wax")


def test_copies_are_found_in_every_dialect_and_without_reading_files_of_other_shapes(shelf: Path) -> None:
    write(shelf / "copy.safetensors", "diffusers", seed=1, metadata={"modelspec.title": "mine"})
    write(shelf / "peft.safetensors", "peft", seed=1)
    read: list[str] = []

    def watched(items: object, what: str) -> object:
        read.extend(entry.name for entry in items)  # pyright: ignore[reportGeneralTypeIssues]
        return items

    groups = find_duplicates(scan(shelf).entries, progress=watched)  # pyright: ignore[reportArgumentType]
    assert [[entry.name for entry in group] for group in groups] == [["copy", "ink", "peft"]]
    small = as_adapter(random_deltas(tiny_unet(), 1, ["to_k"], 2))
    write_safetensors(shelf / "small.safetensors", get_dialect("kohya").write(small).tensors)
    read.clear()
    find_duplicates(scan(shelf).entries, progress=watched)  # pyright: ignore[reportArgumentType]
    assert "small" not in read


def test_the_hash_of_the_weights_knows_values_and_scales_and_nothing_else() -> None:
    one = adapter(1)
    assert hash_adapter(one) == hash_adapter(
        Adapter(tuple(reversed(one.entries)), "other", metadata={"a": "b"})
    )
    assert hash_adapter(one) == hash_adapter(one.map_tensors(lambda tensor: tensor.double()))
    assert hash_adapter(one) != hash_adapter(one.map_tensors(lambda tensor: tensor * 1.001))
    other_scale = as_adapter(random_deltas(tiny_unet(), 1, ["to_q", "conv1"], alpha=1.0))
    assert hash_adapter(one) != hash_adapter(other_scale)


def test_the_same_tensors_on_other_modules_are_no_copy(shelf: Path) -> None:
    one = as_adapter(random_deltas(tiny_unet(), 7, ["attn1.to_q", "attn1.to_k"]))

    def other(path: str) -> str:
        return path.replace("to_q", "to_x").replace("to_k", "to_q").replace("to_x", "to_k")

    entries = tuple(replace(e, target=Target(e.target.component, other(e.target.path))) for e in one.entries)
    for name, written in (("one", one), ("two", replace(one, entries=entries))):
        file = get_dialect("kohya").write(written)
        write_safetensors(shelf / f"{name}.safetensors", file.tensors, file.metadata)
    library = scan(shelf)
    likeness = {entry.name: entry.facts.likeness for entry in library.entries}
    assert likeness["one"] == likeness["two"]
    assert find_duplicates(library.entries) == ()


def test_a_transformers_adapter_is_the_same_in_original_and_in_diffusers_names(tmp_path: Path) -> None:
    fused, other = random_delta((9216, 3072)), random_delta((3072, 15360), 1)
    parts = {
        f"transformer_blocks.0.attn.to_{part}": replace(fused, up=up.clone())
        for part, up in zip("qkv", fused.up.chunk(3), strict=True)
    }
    original = {"double_blocks.0.img_attn.qkv": fused, "single_blocks.0.linear2": other}
    own = {**parts, "single_transformer_blocks.0.proj_out": other}
    (tmp_path / "shelf").mkdir()
    for name, deltas in (("one", original), ("two", own)):
        file = get_dialect("comfyui").write(as_adapter(deltas, "transformer"))
        write_safetensors(tmp_path / "shelf" / f"{name}.safetensors", file.tensors, file.metadata)
    groups = find_duplicates(scan(tmp_path / "shelf").entries)
    assert [[entry.name for entry in group] for group in groups] == [["one", "two"]]
