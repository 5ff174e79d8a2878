"""Safetensors files: the same tensors as the reference reader, and every lie of a header found."""

from __future__ import annotations

import json
import os
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorry.errors import AdapterNotFoundError, BrokenFileError, FileError
from lorry.files import read_header, read_safetensors, safetensors_reader, write_safetensors
from lorry.files._layout import DTYPES

DATA = bytes(range(16))


def described(
    dtype: str = "F32", shape: object = (2,), start: object = 0, stop: object = 8
) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def file_of(path: Path, header: object, data: bytes = DATA) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def example() -> dict[str, torch.Tensor]:
    return {
        "a.alpha": torch.tensor(4.0),
        "b.weight": torch.arange(12, dtype=torch.float16).view(3, 4),
        "c.bf16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "d.empty": torch.zeros(0, 3),
        "e.fp8": torch.tensor([1.0, 2.0, 0.5]).to(torch.float8_e4m3fn),
        "f.bool": torch.tensor([True, False, True]),
    }


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    if set(found) != set(expected):
        raise AssertionError(set(found) ^ set(expected))
    for key, tensor in expected.items():
        other = found[key]
        if (other.dtype, other.shape) != (tensor.dtype, tensor.shape):
            raise AssertionError((key, other.dtype, other.shape))
        if (
            other.contiguous().view(-1).view(torch.uint8).tolist()
            != tensor.contiguous().view(-1).view(torch.uint8).tolist()
        ):
            raise AssertionError(key)


def test_a_file_of_the_reference_writer_is_read_bit_for_bit(tmp_path: Path) -> None:
    safetensors.torch.save_file(example(), tmp_path / "x.safetensors", metadata={"who": "wir"})
    found = read_safetensors(tmp_path / "x.safetensors")
    assert_same(dict(found.tensors), example())
    assert found.metadata == {"who": "wir"}
    assert found.source == str(tmp_path / "x.safetensors")


def test_the_reference_reader_reads_what_is_written(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", example(), {"who": "wir"})
    assert_same(safetensors.torch.load_file(tmp_path / "x.safetensors"), example())
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"who": "wir"}


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_comes_back(name: str, tmp_path: Path) -> None:
    raw = torch.zeros(3 * DTYPES[name].itemsize, dtype=torch.uint8)
    tensors = {"x": raw.view(DTYPES[name]), "y": raw[: DTYPES[name].itemsize].view(DTYPES[name]).view(())}
    write_safetensors(tmp_path / "x.safetensors", tensors)
    assert_same(dict(read_safetensors(tmp_path / "x.safetensors").tensors), tensors)


@pytest.mark.parametrize("padding", range(1, 9))
def test_data_may_begin_at_any_byte(padding: int, tmp_path: Path) -> None:
    header = json.dumps(
        {"x": described(stop=8), "y": described("U8", (1,), 8, 9), "z": described("F32", (1,), 9, 13)}
    )
    values = torch.tensor([1.0, 2.0]).numpy().tobytes() + b"\7" + torch.tensor([3.0]).numpy().tobytes()
    path = file_of(tmp_path / "x.safetensors", header.encode() + b" " * padding, values)
    found = read_safetensors(path).tensors
    assert found["x"].tolist() == [1.0, 2.0]
    assert found["z"].tolist() == [3.0]
    assert all(tensor.data_ptr() % tensor.dtype.itemsize == 0 for tensor in found.values())


def test_tensors_share_one_map_and_writing_to_them_leaves_the_file_alone(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", {"x": torch.zeros(4), "y": torch.ones(4)})
    before = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_safetensors(path).tensors
    distance = found["y"].data_ptr() - found["x"].data_ptr()
    found["x"].fill_(5)
    assert distance == 16
    assert path.read_bytes() == before
    assert read_safetensors(path).tensors["x"].tolist() == [0, 0, 0, 0]


def test_a_header_is_read_without_weights_and_with_alphas(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", example(), {"who": "wir"})
    found = read_header(path)
    assert found.tensors["b.weight"].is_meta
    assert found.tensors["b.weight"].shape == (3, 4)
    assert found.tensors["a.alpha"].item() == 4.0
    assert found.tensors["d.empty"].shape == (0, 3)
    assert found.metadata == {"who": "wir"}


def test_a_header_of_a_file_larger_than_memory_is_read(tmp_path: Path) -> None:
    size = 1 << 40
    header = {"x": described("U8", (size - 4,), 4, size), "x.alpha": described("F32", (), 0, 4)}
    path = file_of(tmp_path / "x.safetensors", header, torch.tensor(2.0).numpy().tobytes())
    os.truncate(path, path.stat().st_size - 4 + size)
    found = read_header(path).tensors
    assert found["x"].shape == (size - 4,)
    assert found["x.alpha"].item() == 2.0


BROKEN = {
    "is cut off in the first 8 bytes": (b"\1\2", "the header's length, got 2 bytes"),
    "announces a header longer than itself": (
        b"\xff\0\0\0\0\0\0\0{}",
        "a header of at most 2 bytes, got 255",
    ),
    "announces a header of exabytes": (b"\xff" * 8 + b"{}", "a header of at most 2 bytes"),
    "is a web page": (b"<!DOCTYPE html><html>", "This is a web page"),
    "is a message of a site": (b'{"error":"Unauthorized"}', "This is a message in JSON"),
    "is a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "Run `git lfs pull`"),
    "is an archive": (b"PK\3\4\x14\0\0\0\0\0", "This is a zip archive"),
    "is compressed": (b"\x1f\x8b\x08\x08\x9a\x9b\x9c\x65\0\0", "compressed by gzip"),
    "is an old pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j", "This is a pickle"),
    "is cut off and begins like another kind": (b"\x80\2\0\0\0\0\0\0{}", "it is cut off"),
    "is empty": (b"", "got 0 bytes in all"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_file_that(what: str, tmp_path: Path) -> None:
    content, message = BROKEN[what]
    (tmp_path / "x.safetensors").write_bytes(content)
    for read in (read_safetensors, read_header):
        with pytest.raises(BrokenFileError, match=message):
            read(tmp_path / "x.safetensors")


HEADERS: dict[str, tuple[object, str]] = {
    "no JSON": (b"{nonsense}", "expected UTF-8 JSON"),
    "no UTF-8": (b'{"\xff": 1}', "expected UTF-8 JSON"),
    "a list": (b"[]", "a JSON object, got list"),
    "NaN": (b'{"x": NaN}', "the constant NaN"),
    "a key twice": (b'{"x": 1, "x": 2}', "the key 'x' twice"),
    "metadata that is no text": ({"__metadata__": {"a": 1}}, "text under every key"),
    "no description": ({"x": 3}, "`x`: expected dtype, shape and two data_offsets"),
    "a float offset": ({"x": described(start=0.0)}, "`x`: expected dtype, shape and two"),
    "an unknown dtype": ({"x": described("F12")}, "`x`: expected a dtype of BOOL"),
    "a negative size": ({"x": described(shape=(-2,))}, "`x`: expected a shape of at most 8 whole"),
    "a size that is no number": ({"x": described(shape=(True,))}, "`x`: expected a shape of at most 8 whole"),
    "too few bytes": ({"x": described(stop=4)}, r"`x`: expected 8 bytes for F32 \[2\], got bytes 0 to 4"),
    "a start before the data": ({"x": described(start=-8, stop=0)}, "`x`: expected dtype, shape and two"),
    "flags for offsets": ({"x": described("U8", (1,), False, True)}, "`x`: expected dtype, shape and two"),
    "more rows than can be counted": (
        {"x": described(shape=(0, 2**63), stop=0)},
        "`x`: expected a shape of at most 8 whole numbers",
    ),
    "no rows of more columns than can be counted": (
        {"x": described(shape=(2**40, 2**40, 0), stop=0)},
        "`x`: expected strides of at most",
    ),
    "a thousand axes": (
        {"x": described("U8", (1,) * 1000, 0, 1)},
        "`x`: expected a shape of at most 8 whole numbers",
    ),
    "a number of 5,000 digits": (b'{"x": ' + b"9" * 5000 + b"}", "expected UTF-8 JSON"),
    "half a character in a key": (rb'{"\ud800": 3}', "expected UTF-8 text"),
    "metadata twice": (b'{"__metadata__":{"a":"b"},"__metadata__":{}}', "the key '__metadata__' twice"),
    "metadata and a stray comma": (b'{"__metadata__":{"a":"b"},}', "expected UTF-8 JSON"),
    "metadata that is cut off": (b'{"__metadata__":{"a":"b"', "expected UTF-8 JSON"),
    "half a character in its metadata": (rb'{"__metadata__": {"a": "\ud800"}}', "expected UTF-8 text"),
    "a million lists": (b"[" + b"[]," * 1_000_000 + b"[]]", "at most 1000000 objects and lists, got 1000002"),
    "a hole": ({"x": described(), "y": described("U8", (4,), 12, 16)}, "`y` leaves a hole before it"),
    "an overlap": (
        {"x": described(), "y": described("U8", (12,), 4, 16)},
        "`y` overlaps the tensor before it",
    ),
    "an end after the file's": ({"x": described("U8", (32,), 0, 32)}, "the data: expected 32 bytes, got 16"),
    "data that no tensor takes": ({"x": described()}, "the data: expected 8 bytes, got 16"),
    "deep nesting": (b"[" * 50_000, "expected UTF-8 JSON"),
}


def test_files_of_one_layout_share_it_whatever_their_metadata(tmp_path: Path) -> None:
    for name, text in (("x", {"who": "wir"}), ("y", {"who": "ihr", "z": "}"}), ("z", {})):
        write_safetensors(tmp_path / f"{name}.safetensors", example(), text)
    x, y, z = (read_safetensors(tmp_path / f"{name}.safetensors") for name in "xyz")
    assert (x.metadata["who"], y.metadata, z.metadata) == ("wir", {"who": "ihr", "z": "}"}, {})
    assert x.spans is y.spans is not None
    assert list(x.tensors) == list(z.tensors)
    other = write_safetensors(tmp_path / "w.safetensors", {"x": torch.zeros(4)}, {"who": "wir"})
    assert read_safetensors(other).spans is not x.spans


def test_a_layout_that_was_seen_is_checked_against_each_file(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", example(), {"who": "wir"})
    read_safetensors(path)
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(BrokenFileError, match="the data: expected"):
        read_safetensors(path)


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_is_refused_with(what: str, tmp_path: Path) -> None:
    header, message = HEADERS[what]
    path = file_of(tmp_path / "x.safetensors", header)
    with pytest.raises(BrokenFileError, match=message):
        read_safetensors(path)
    with pytest.raises(BrokenFileError, match=r"x\.safetensors: "):
        read_header(path)


def test_a_key_that_comes_twice_among_many_is_found_at_once(tmp_path: Path) -> None:
    keys = ",".join(f'"{number}": 1' for number in range(200_000))
    with pytest.raises(BrokenFileError, match="the key '199999' twice"):
        read_header(file_of(tmp_path / "x.safetensors", f'{{{keys}, "199999": 1}}'.encode()))


def test_a_file_is_closed_where_no_thread_can_be_started_to_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(example(), path)
    file = path.open("rb")
    monkeypatch.setattr(safetensors_reader, "LARGE", 0)
    monkeypatch.setattr(safetensors_reader, "_open", lambda _: file)
    monkeypatch.setattr(threading.Thread, "start", fails)
    with pytest.raises(RuntimeError, match="new thread"):
        read_safetensors(path, into_memory=True, early=True)
    assert file.closed


def test_a_file_that_is_cut_off_while_it_is_read_early_is_told_when_it_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1 << 18)}, path)  # more than is read along with the header
    fill, is_cut = safetensors_reader._fill, threading.Event()

    def waits(*args: Any) -> None:
        is_cut.wait()
        fill(*args)

    monkeypatch.setattr(safetensors_reader, "LARGE", 0)
    monkeypatch.setattr(safetensors_reader, "_fill", waits)
    found = read_safetensors(path, into_memory=True, early=True)
    assert found.tensors["a"].shape == (1 << 18,)
    os.truncate(path, path.stat().st_size - 1)
    is_cut.set()
    with pytest.raises(BrokenFileError, match="changed meanwhile"):
        found.arrived()


def test_a_pipe_is_no_file_to_wait_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(
        AdapterNotFoundError, match=r"x\.safetensors: the file cannot be opened: it is no regular"
    ):
        read_safetensors(tmp_path / "x.safetensors")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        AdapterNotFoundError, match=r"no\.safetensors: the file cannot be opened: No such file"
    ):
        read_safetensors(tmp_path / "no.safetensors")


@given(keys=st.permutations(sorted(example())), names=st.permutations(["b", "a", "ä"]))
def test_the_same_tensors_give_the_same_bytes(
    keys: list[str], names: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    tensors = example()
    write_safetensors(folder / "a", tensors, {"a": "1", "b": "2", "ä": "ö"})
    write_safetensors(
        folder / "b",
        {key: tensors[key] for key in keys},
        {n: {"a": "1", "b": "2", "ä": "ö"}[n] for n in names},
    )
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()


def test_views_and_shared_memory_are_written_in_full(tmp_path: Path) -> None:
    base = torch.arange(6.0).view(2, 3)
    tensors = {"whole": base, "turned": base.T, "again": base, "grown": torch.ones(1).expand(4)}
    write_safetensors(tmp_path / "x.safetensors", {**tensors, "trained": torch.ones(2, requires_grad=True)})
    found = read_safetensors(tmp_path / "x.safetensors").tensors
    assert torch.equal(found["turned"], base.T)
    assert torch.equal(found["again"], base)
    assert found["grown"].tolist() == [1, 1, 1, 1]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", {"x": torch.zeros(2)})
    before = path.read_bytes()

    def fails(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(FileError, match=r"x\.safetensors: cannot be written: No space left"):
        write_safetensors(path, {"x": torch.ones(2)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_read_only_file_system_is_told_with_the_file_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path, *_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "open", fails)
    monkeypatch.setattr(Path, "unlink", fails)  # such a system refuses this of a file that is not there, too
    with pytest.raises(FileError, match=r"x\.safetensors: cannot be written: Read-only file system\.$"):
        write_safetensors(tmp_path / "x.safetensors", {"x": torch.zeros(2)})


def test_what_the_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"`x`: torch\.float32 on meta cannot be written"):
        write_safetensors(tmp_path / "x", {"x": torch.zeros(2, device="meta")})
    with pytest.raises(FileError, match="there is no folder"):
        write_safetensors(tmp_path / "no" / "x", {"x": torch.zeros(2)})
    assert not list(tmp_path.iterdir())


def test_metadata_of_99_megabytes_is_read_and_of_more_than_100_refused(tmp_path: Path) -> None:
    path, large = tmp_path / "large.safetensors", "x" * 99_000_000
    write_safetensors(path, {"x": torch.ones(2)}, {"note": large})
    assert len(read_safetensors(path).metadata["note"]) == len(large)
    file_of(path, {"__metadata__": {"note": "x" * 100_000_000}}, b"")
    with pytest.raises(BrokenFileError, match=r"a header of at most 100000000 bytes, got 1000000\d\d"):
        read_safetensors(path)
