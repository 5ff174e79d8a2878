"""Files read and written one tensor at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorry.errors import BrokenFileError, FileError
from lorry.files import TensorReader, read_header, size_on_disk, stream_safetensors, write_safetensors

TENSORS = {
    "b": torch.randn(3, 4),
    "half": torch.randn(5).half(),
    "one": torch.tensor(2.0),
    "none": torch.empty(0, 3),
}
TEXT = {"name": "x"}


def test_a_reader_gives_each_tensor_in_memory_of_its_own(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", TENSORS, TEXT)
    with TensorReader(path) as reader:
        outline = reader.outline
        assert outline.metadata == TEXT
        assert {key: (t.dtype, t.shape, t.is_meta) for key, t in outline.tensors.items()} == {
            key: (t.dtype, t.shape, True) for key, t in TENSORS.items()
        }
        for key, tensor in TENSORS.items():
            assert torch.equal(reader.read(key), tensor)
        assert reader.read("b").data_ptr() != reader.read("b").data_ptr()


def test_a_file_that_was_cut_off_meanwhile_is_an_error(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", {"x": torch.zeros(8000)})
    with TensorReader(path) as reader:
        path.write_bytes(path.read_bytes()[:9000])
        with pytest.raises(BrokenFileError, match="`x`: the file ends before it"):
            reader.read("x")


def test_a_header_that_lies_is_refused_and_the_file_closed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(BrokenFileError):
        TensorReader(path)


def test_what_is_streamed_is_bit_for_bit_what_is_written_at_once(tmp_path: Path) -> None:
    whole = write_safetensors(tmp_path / "whole.safetensors", TENSORS, TEXT)
    asked: list[str] = []

    def produce(key: str) -> torch.Tensor:
        asked.append(key)
        return TENSORS[key]

    outlines = {key: tensor.to("meta") for key, tensor in TENSORS.items()}
    streamed = stream_safetensors(tmp_path / "streamed.safetensors", outlines, produce, TEXT)
    assert streamed.read_bytes() == whole.read_bytes()
    assert sorted(asked) == sorted(TENSORS)
    assert size_on_disk(outlines, TEXT) == whole.stat().st_size


@pytest.mark.parametrize("wrong", [torch.zeros(2), torch.zeros(3).half(), torch.zeros(3, device="meta")])
def test_a_tensor_unlike_its_outline_leaves_the_older_file(tmp_path: Path, wrong: torch.Tensor) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", {"x": torch.ones(3)})
    before = path.read_bytes()
    with pytest.raises(FileError, match=r"`x`: expected torch.float32 \(3,\), got"):
        stream_safetensors(path, read_header(path).tensors, lambda _: wrong)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
