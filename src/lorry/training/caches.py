"""Tensors that are made once and kept on the disk: latents of pictures, embeddings of captions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from lorry.files import read_safetensors, write_safetensors


@final
class TensorCache:
    """A folder of entries, each a few tensors by name. An entry is there whole or not at all.

    Reading leaves the keeping in memory to the system, which gives it up when memory is short.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def has(self, key: str) -> bool:
        """Whether there is an entry."""
        return self._path(key).is_file()

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Make an entry."""
        write_safetensors(self._path(key), tensors)

    def read(self, key: str) -> dict[str, Tensor]:
        """Return an entry's tensors, on the CPU."""
        return dict(read_safetensors(self._path(key)).tensors)

    def refuse(self, key: str, reason: str) -> None:
        """Note that an entry cannot be made, and why."""
        self._path(key).with_suffix(".refused").write_text(reason, encoding="utf-8")

    def find_refusal(self, key: str) -> str | None:
        """Return why an entry could not be made, or None."""
        path = self._path(key).with_suffix(".refused")
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"


def key_of(*words: object) -> str:
    """Return a file name that depends on all `words`."""
    return hashlib.sha256(repr(words).encode()).hexdigest()[:40]


def model_hash(model: nn.Module) -> str:
    """Return the SHA-256 of a model's own weights: names, dtypes, shapes and bytes, whatever files they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
