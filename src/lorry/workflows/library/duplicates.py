"""Files that hold the same weights, whatever they are called and in whatever dialect they are."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from torch import float32

from lorry.adapters import Adapter
from lorry.dialects import read_adapter
from lorry.files import read_weights
from lorry.workflows.library.facts import digest
from lorry.workflows.library.index import LibraryEntry
from lorry.workflows.matching import Layer, match
from lorry.workflows.original_layers import with_diffusers_names
from lorry.workflows.progress import Progress, silent


def find_duplicates(
    entries: Iterable[LibraryEntry], *, progress: Progress = silent
) -> tuple[tuple[LibraryEntry, ...], ...]:
    """Return the groups of adapters with the same weights. Weights are read of files that are alike in all shapes only.

    Raises:
        FileError, FormatError: a file has been changed since it was listed, and cannot be read.
    """
    alike: dict[str, list[LibraryEntry]] = defaultdict(list)
    for entry in entries:
        if entry.facts.likeness:
            alike[entry.facts.likeness].append(entry)
    candidates = [entry for group in alike.values() if len(group) > 1 for entry in group]
    same: dict[str, list[LibraryEntry]] = defaultdict(list)
    for entry in progress(candidates, "comparing weights"):
        same[hash_adapter(read_adapter(read_weights(Path(entry.path))))].append(entry)
    return tuple(tuple(group) for group in same.values() if len(group) > 1)


def hash_adapter(adapter: Adapter) -> str:
    """Return a hash that depends on the deltas alone: not on spelling, order, dialect, metadata or dtype.

    What it is made of is each delta's module under one name for all dialects, its family, its scale and the values of
    its tensors as float32. Fused layers of a known transformer are taken apart, so that a file in the names of its
    original checkpoint is the same as in those of diffusers.
    """
    return digest(sorted(_hash_layer(layer) for layer in match([with_diffusers_names(adapter)])))


def _hash_layer(layer: Layer) -> str:
    delta = layer.present[0].delta
    found = hashlib.sha256(f"{layer.name} {delta.family} {delta.rank_scale:.6g}".encode())
    for name, tensor in sorted(delta.tensors().items()):
        found.update(name.encode())
        found.update(tensor.detach().to(float32).contiguous().reshape(-1).numpy().data)
    return found.hexdigest()
