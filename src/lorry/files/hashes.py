"""The hashes by which other programs and Civitai know an adapter file.

    AutoV1         sha256 of 64 kB from the first megabyte on, 8 digits          A1111 of 2022
    AutoV2         sha256 of the whole file, 10 digits                           A1111, Civitai
    AutoV3         sha256 of all that follows the header, 12 digits              A1111 for LoRA, Civitai
    sshs_*         AutoV3 in full and AutoV1, of the file as kohya's trainer serialised it: with its `ss_` texts alone

Source: AUTOMATIC1111/stable-diffusion-webui, `modules/sd_models.py`, `modules/hashes.py` and
`extensions-builtin/Lora/network.py`; kohya-ss/sd-scripts, `library/train_util.py`.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import safetensors.torch
from torch import Tensor

from lorry.errors import AdapterNotFoundError
from lorry.files._layout import LENGTH_BYTES
from lorry.files._shards import is_index
from lorry.files.safetensors_reader import read_safetensors

CHUNK = 1 << 20
OLD_START, OLD_LENGTH = 0x100000, 0x10000
HASH_KEYS: tuple[str, ...] = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
"""Where a header says a hash of its file's tensors."""


@final
@dataclass(frozen=True, slots=True)
class Hashes:
    """The hashes of a file, in lower-case hexadecimal digits."""

    autov1: str
    autov2: str
    sha256: str
    autov3: str | None
    """None for a file that is no safetensors file."""
    sshs_model_hash: str | None
    """As kohya's trainer would write it into the header; the header's own may be of another file."""
    sshs_legacy_hash: str | None

    def as_dict(self) -> dict[str, str | None]:
        """The hashes in types that JSON has."""
        return asdict(self)

    def __str__(self) -> str:
        shown = {"AutoV1": self.autov1, "AutoV2": self.autov2, "AutoV3": self.autov3, "sha256": self.sha256}
        shown |= {"sshs_model_hash": self.sshs_model_hash, "sshs_legacy_hash": self.sshs_legacy_hash}
        return "\n".join(["hashes:", *(f"  {name:<16}  {value}" for name, value in shown.items() if value)])


def hash_file(path: str | os.PathLike[str]) -> Hashes:
    """Return the hashes of an adapter file. The whole file is read.

    Raises:
        AdapterNotFoundError: it cannot be opened, or is in several parts.
        BrokenFileError: a safetensors file's header does not describe it.
    """
    path = Path(path)
    with _opened(path) as file:
        old, whole, start = _old(file), _rest(file, 0), _data_start(file)
        data = _rest(file, start) if start else None
    found = read_safetensors(path) if start else None
    model, legacy = _of_kohya(found.tensors, found.metadata) if found else (None, None)
    return Hashes(old, whole[:10], whole, None if data is None else data[:12], model, legacy)


def weights_hash(path: str | os.PathLike[str]) -> str:
    """Return AutoV3 in full, 64 digits: it stays the same when metadata are edited. Of a pickle, the whole file's hash.

    Raises:
        AdapterNotFoundError: the file cannot be opened, or is in several parts.
    """
    with _opened(path) as file:
        return _rest(file, _data_start(file))


def rehashed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Return metadata in which each hash of the tensors that it has is that of `tensors`.

    Source: kohya-ss/sd-scripts, `library/train_util.py`, `precalculate_safetensors_hashes`; Stability-AI/ModelSpec.
    """
    if not metadata.keys() & set(HASH_KEYS):
        return dict(metadata)
    apart = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    model, legacy = _of_kohya(apart, metadata)
    true: dict[str, str] = dict(zip(HASH_KEYS, (model, legacy, f"0x{model}"), strict=True))
    return {key: true.get(key, text) for key, text in metadata.items()}


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[io.BufferedIOBase]:
    if is_index(Path(path)):
        raise AdapterNotFoundError(f"{path} lists an adapter's parts, which have no hash of them all.")
    try:
        with Path(path).open("rb") as file:
            yield file
    except OSError as error:
        raise AdapterNotFoundError(f"{path}: the file cannot be opened: {error.strerror}.") from error


def _data_start(file: io.BufferedIOBase) -> int:
    """Return where the data of a safetensors file begin, or 0 for another file."""
    file.seek(0)
    head = file.read(LENGTH_BYTES + 1)
    return LENGTH_BYTES + int.from_bytes(head[:LENGTH_BYTES], "little") if head[LENGTH_BYTES:] == b"{" else 0


def _old(file: io.BufferedIOBase) -> str:
    file.seek(OLD_START)
    return hashlib.sha256(file.read(OLD_LENGTH)).hexdigest()[:8]


def _rest(file: io.BufferedIOBase, start: int) -> str:
    file.seek(start)
    found = hashlib.sha256()
    while chunk := file.read(CHUNK):
        found.update(chunk)
    return found.hexdigest()


def _of_kohya(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[str, str]:
    text = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    file = io.BytesIO(safetensors.torch.save(dict(tensors), text))
    return _rest(file, _data_start(file)), _old(file)
