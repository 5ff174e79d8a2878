"""Files that hold the same weights, whatever they are called and in whatever dialect they are."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from torch import float32

from lorry.adapters import Adapter, Entry
from lorry.dialects import read_adapter
from lorry.files import read_weights
from lorry.workflows.library.facts import digest
from lorry.workflows.library.index import LibraryEntry
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
    """Return a hash that depends on the values of the deltas alone: not on names, order, dialect, metadata or dtype.

    What it is made of is each delta's family, its scale and the values of its tensors as float32, sorted. Module paths
    are left out: dialects have different ones for the same module, which only a live model can tell apart. Two adapters
    with the same values on other modules would be taken for one; none but copies have them.
    """
    return digest(sorted(map(_hash_entry, adapter.entries)))


def _hash_entry(entry: Entry) -> str:
    found = hashlib.sha256(f"{entry.delta.family} {entry.delta.rank_scale:.6g}".encode())
    for name, tensor in sorted(entry.delta.tensors().items()):
        found.update(name.encode())
        found.update(tensor.detach().to(float32).contiguous().reshape(-1).numpy().data)
    return found.hexdigest()
