"""Pickles: tensors come out, and nothing in them runs."""

from __future__ import annotations

import os
import pickle
import resource
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lorry.errors import AdapterNotFoundError, BrokenFileError, FileError
from lorry.files import LIST_MARKER, read_pickle, write_pickle


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.victim}",)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_pickle_does_not_run(new_format: bool, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    torch.save({"x": Malicious(victim)}, tmp_path / "x.bin", _use_new_zipfile_serialization=new_format)
    with pytest.raises(BrokenFileError, match="runs no code of a file"):
        read_pickle(tmp_path / "x.bin")
    assert not victim.exists()


def test_code_in_a_bare_pickle_does_not_run(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"x": Malicious(victim)}, protocol=2))
    with pytest.raises(BrokenFileError, match=r"got one that would run (posix|nt)\.system"):
        read_pickle(tmp_path / "x.pt")
    assert not victim.exists()


@pytest.mark.parametrize("nest", ["state_dict", "lora_state_dict", "weights"])
def test_nested_weights_are_taken_out(nest: str, tmp_path: Path) -> None:
    torch.save({"epoch": 3, nest: {"state_dict": {"x": torch.ones(2)}}}, tmp_path / "x.ckpt")
    found = read_pickle(tmp_path / "x.ckpt")
    assert found.tensors["x"].tolist() == [1, 1]
    assert list(found.tensors) == ["x"]


def test_plain_numbers_become_tensors(tmp_path: Path) -> None:
    torch.save({"x.alpha": 8, "y.alpha": 0.1}, tmp_path / "x.pt")
    found = read_pickle(tmp_path / "x.pt").tensors
    assert found["x.alpha"].item() == 8
    assert found["y.alpha"].item() == 0.1


def test_a_bare_list_comes_back_by_position(tmp_path: Path) -> None:
    torch.save([torch.ones(2, 1, requires_grad=True), torch.zeros(1, 3)], tmp_path / "x.pt")
    found = read_pickle(tmp_path / "x.pt")
    assert {key: tuple(tensor.shape) for key, tensor in found.tensors.items()} == {"0": (2, 1), "1": (1, 3)}
    assert not found.tensors["0"].requires_grad
    assert LIST_MARKER in found.metadata


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({1: torch.ones(1)}, "expected names as keys, got 1"),
        ({"x": "text"}, "expected a tensor under 'x', got str"),
        ({"x": True}, "expected a tensor under 'x', got bool"),
        ("text", "expected tensors by name, or a list of tensors, got str"),
        ([], "expected tensors by name, or a list of tensors, got list"),
        ([torch.ones(1), "text"], "expected a tensor under '1', got str"),
    ],
)
def test_anything_but_tensors_is_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(BrokenFileError, match=message):
        read_pickle(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [b"", b"hello there", b"PK\3\4 no zip", b"\x80\2}q\0."[:3]])
def test_what_is_no_pickle_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(BrokenFileError, match="expected a "):
        read_pickle(tmp_path / "x.pt")


class Pickled:
    """Pickles as a call of `make`."""

    def __init__(self, make: object, *args: object) -> None:
        self.made = make, args

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.made


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1_000_000)}, tmp_path / "stored.pt")
    with (
        zipfile.ZipFile(tmp_path / "stored.pt") as stored,
        zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    assert (tmp_path / "x.pt").stat().st_size < 10_000
    with pytest.raises(
        BrokenFileError, match=r"expected an archive of at most \d+ bytes, got one that unpacks to 4"
    ):
        read_pickle(tmp_path / "x.pt")


def test_a_tensor_that_repeats_one_number_a_billion_times_is_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(1).expand(1_000_000_000)}, tmp_path / "x.pt")
    with pytest.raises(BrokenFileError, match=r"at most \d+ bytes under 'x', got 4000000000"):
        read_pickle(tmp_path / "x.pt")


def test_tensors_of_other_kinds_are_refused(tmp_path: Path) -> None:
    others = {"sparse": torch.eye(3).to_sparse(), "meta": torch.zeros(3, device="meta")}
    for name, tensor in others.items():
        torch.save({"x": tensor}, tmp_path / f"{name}.pt")
        with pytest.raises(BrokenFileError, match="expected a plain tensor under 'x'"):
            read_pickle(tmp_path / f"{name}.pt")


@pytest.mark.parametrize(
    "bomb", [Pickled(bytearray, 1 << 62), Pickled(torch.device, "gpu:9")], ids=["memory", "device"]
)
def test_calls_that_torch_allows_and_that_fail_are_refused(bomb: Pickled, tmp_path: Path) -> None:
    torch.save({"x": bomb}, tmp_path / "x.pt")
    with pytest.raises(BrokenFileError, match=r"x\.pt: expected "):
        read_pickle(tmp_path / "x.pt")


def test_a_missing_pickle_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFoundError, match=r"no\.bin: the file cannot be opened"):
        read_pickle(tmp_path / "no.bin")


OTHER_KINDS = {
    "a textual inversion embedding. Load it with `load_textual_inversion`": {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": {"*": torch.ones(2, 4)},
        "name": "toy",
        "step": 500,
    },
    "a hypernetwork, which is no LoRA": {
        320: [{"linear.0.weight": torch.ones(4, 4)}, {"linear.0.weight": torch.ones(4, 4)}],
        "step": 500,
        "name": "toy",
    },
    "an IP-Adapter. Load it with `load_ip_adapter`": {
        "image_proj": {"proj.weight": torch.ones(4, 4)},
        "ip_adapter": {"1.to_k_ip.weight": torch.ones(4, 4)},
    },
    "a PhotoMaker, whose LoRA is for an encoder of faces beside it": {
        "id_encoder": {"visual_projection_2.weight": torch.ones(4, 4)},
        "lora_weights": {"unet.mid_block.attentions.0.proj_in.lora.down.weight": torch.ones(4, 4)},
    },
    "a single tensor without a name, as aesthetic gradients are": torch.ones(1, 4),
}


@pytest.mark.parametrize("what", OTHER_KINDS)
def test_another_kind_of_pickle_is_refused_by_name(what: str, tmp_path: Path) -> None:
    torch.save(OTHER_KINDS[what], tmp_path / "x.pt")
    with pytest.raises(BrokenFileError, match=rf"x\.pt is {what}"):
        read_pickle(tmp_path / "x.pt")


@pytest.fixture
def no_more_than_a_page() -> Iterator[Callable[[], None]]:
    """Lets no file grow beyond 4096 bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_and_leaves_nothing(
    no_more_than_a_page: Callable[[], None], tmp_path: Path
) -> None:
    no_more_than_a_page()
    with pytest.raises(FileError, match=r"x\.bin: cannot be written"):
        write_pickle(tmp_path / "x.bin", {"x": torch.ones(4096)})
    assert not [*tmp_path.iterdir()]
