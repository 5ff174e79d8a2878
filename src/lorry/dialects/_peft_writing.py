"""What the two dialects with PEFT's tensors share when they write: one config a component."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from lorry.adapters import Adapter, Entry
from lorry.algebra import Delta, LoraDelta, VeraDelta
from lorry.dialects import _peft_config
from lorry.dialects._exporting import find_obstacles
from lorry.dialects._headers import kept_configs
from lorry.dialects._naming import dotted, is_embedding
from lorry.dialects._peft_apart import take_apart_for_peft
from lorry.dialects._suffixes import Role


def with_embeddings(adapter: Adapter) -> Adapter:
    """Return an adapter whose LoRAs of embeddings are marked as such: another dialect does not tell them from others.

    PEFT spells them by keys of their own, transposed.
    """
    return replace(adapter, entries=tuple(map(_marked, adapter.entries)))


def _marked(entry: Entry) -> Entry:
    delta = entry.delta
    if isinstance(delta, LoraDelta) and len(delta.shape) == 2 and is_embedding(entry.target):
        return replace(entry, delta=replace(delta, of_embedding=True))
    return entry


def find_peft_obstacles(adapter: Adapter, suffixes: Mapping[Role, str]) -> dict[str, str]:
    """Return, by target, what of an adapter has no name among these suffixes or no place in its component's config."""
    adapter = with_embeddings(adapter)
    found = find_obstacles(adapter, suffixes, take_apart_for_peft)
    for entries in _by_component(adapter).values():
        named = {str(entry.target): entry.delta for entry in entries if str(entry.target) not in found}
        found |= _peft_config.find_obstacles(named)
    first = next((e.target.component for e in adapter.entries if isinstance(e.delta, VeraDelta)), None)
    several = "VeRA: in a second component, whose shared matrices have no names of their own"
    return found | {
        str(entry.target): several
        for entry in adapter.entries
        if isinstance(entry.delta, VeraDelta) and entry.target.component != first
    }


def shared_matrices(adapter: Adapter) -> dict[str, Tensor]:
    """Return the matrices that all layers of a VeRA share, once, by PEFT's keys."""
    tensors = {}
    for entry in adapter.entries:
        if isinstance(entry.delta, VeraDelta):
            root = f"{dotted(entry.target).component}.base_model"
            tensors |= {f"{root}.vera_A": entry.delta.shared_a, f"{root}.vera_B": entry.delta.shared_b}
    return tensors


def make_configs(adapter: Adapter) -> dict[str, dict[str, Any]]:
    """Return the config of each component of an adapter without obstacles."""
    kept = kept_configs(adapter.metadata)
    configs = {}
    for component, entries in _by_component(adapter).items():
        deltas: dict[str, Delta] = {dotted(entry.target).path: entry.delta for entry in entries}
        configs[component] = _peft_config.make_config(deltas, kept.get(component) or kept.get("") or {})
    return configs


def _by_component(adapter: Adapter) -> dict[str, list[Entry]]:
    parts: dict[str, list[Entry]] = {}
    for entry in adapter.entries:
        parts.setdefault(dotted(entry.target).component, []).append(entry)
    return parts
