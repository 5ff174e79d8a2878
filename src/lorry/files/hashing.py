"""The hash by which web interfaces know an adapter file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from lorry.errors import AdapterNotFoundError
from lorry.files._layout import LENGTH_BYTES

_BLOCK = 1 << 20


def weights_hash(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of what follows the header of a safetensors file, in hexadecimal (of a whole other file).

    It stays the same when metadata are edited. Its first 12 digits are what A1111 and Civitai (AutoV3) call a LoRA's
    hash.

    Raises:
        AdapterNotFoundError: the file cannot be read.

    Source: AUTOMATIC1111/stable-diffusion-webui, `modules/hashes.py`, `addnet_hash_safetensors`.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            start = file.read(LENGTH_BYTES + 1)
            safe = start[LENGTH_BYTES:] == b"{"
            file.seek(LENGTH_BYTES + int.from_bytes(start[:LENGTH_BYTES], "little") if safe else 0)
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise AdapterNotFoundError(f"{path}: the file cannot be read: {error.strerror}.") from error
    return digest.hexdigest()
