"""What the dialects without an alpha share when they write: LoRAs at scale 1, `down` and `up` and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from lorry.adapters import Adapter, Entry
from lorry.algebra import Delta, LoraDelta
from lorry.dialects._apart import Roles, take_apart
from lorry.dialects._exporting import check_writable, find_obstacles, spelled
from lorry.dialects._headers import header_without_alphas
from lorry.dialects._suffixes import Role
from lorry.errors import UnsupportedAdapterError
from lorry.files import TensorFile

SUFFIXES: Final[Mapping[Role, str]] = {"down": "down.weight", "up": "up.weight"}

NameOf = Callable[[Entry], str | None]
"""The key of a layer before its suffix; None where the dialect has no name for the layer."""


def find_plain_obstacles(adapter: Adapter, name_of: NameOf) -> dict[str, str]:
    """Return, by target, what of an adapter is no LoRA at scale 1 or has no name."""
    found = find_obstacles(adapter, SUFFIXES, _take_apart)
    nameless = {
        str(entry.target): "no name for this layer" for entry in adapter.entries if not name_of(entry)
    }
    return {**nameless, **found}


def write_plain(adapter: Adapter, obstacles: Mapping[str, str], name_of: NameOf, dialect: str) -> TensorFile:
    """Return a file of a dialect without an alpha.

    Raises:
        UnsupportedAdapterError: the adapter has obstacles, or two layers have one key.
    """
    check_writable(adapter, obstacles, dialect)
    tensors = spelled(adapter.entries, SUFFIXES, lambda entry: _named(entry, name_of), _take_apart)
    return TensorFile(tensors, header_without_alphas(adapter), adapter.source)


def _named(entry: Entry, name_of: NameOf) -> str:
    name = name_of(entry)
    if name is None:
        raise UnsupportedAdapterError(f"{entry.target}: this dialect has no name for it.")
    return name


def _take_apart(delta: Delta) -> Roles:
    """The tensors of a delta, without an alpha that says what goes without saying."""
    roles = take_apart(delta)
    if isinstance(delta, LoraDelta) and delta.rank_scale == 1:
        roles.pop("alpha", None)
    return roles
