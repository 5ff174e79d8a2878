"""Read any file whose keys name their modules: the work that most dialects share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from lorry.adapters import Adapter, Entry, Ignored
from lorry.dialects._building import build
from lorry.dialects._embeddings import read_bundle
from lorry.dialects._families import SCALE, Family, find_family
from lorry.dialects._layers import Layer, Sorted, sort_keys
from lorry.dialects._lone import alpha_keys, sort_lone, with_lone_alpha
from lorry.dialects._metadata import find_rules
from lorry.dialects._parts import LayerParts
from lorry.dialects._rules import Rules
from lorry.dialects._suffixes import SHARED
from lorry.errors import FormatError
from lorry.files import TensorFile
from lorry.names import Target

_OWN_SCALE = (".alpha", ".lora_alpha", ".scale")


def read_named(file: TensorFile, dialect: str) -> Adapter:
    """Return the adapter in a file whose keys name their modules, in whatever mixture of spellings.

    Args:
        file: the file; its tensors may be on the meta device, but for alphas.
        dialect: the name to put on the adapter.

    Returns:
        The adapter, its entries sorted by target. It shares the file's tensors.

    Raises:
        UnsupportedAdapterError: some tensors are of a family that lorry cannot apply.
        FormatError: two tensors contradict each other, or one has no meaning.
    """
    found = sort_keys(file.tensors, file.source)
    rules = find_rules(file, any("alpha" in layer for layer in found.layers.values()))
    rules = with_lone_alpha(file, rules)
    entries = []
    for target, layer in sorted(found.layers.items(), key=lambda item: _order(item[0])):
        entry = _entry(file, target, layer, rules, found)
        if entry is not None:
            entries.append(entry)
    if found.has_parts or any(not SHARED.isdisjoint(layer) for layer in found.layers.values()):
        entries = _counted_once(entries)
    entries, lone = _with_lone_alpha(entries, alpha_keys(file))
    found.ignored.extend(lone)
    left = [key for key in found.unknown if key not in alpha_keys(file)]
    numbers, left = sort_lone(file, left)
    embeddings, bookkeeping, unknown = read_bundle(file, found.bundled)
    return Adapter(
        tuple(entries),
        dialect,
        tuple(sorted((*found.ignored, *numbers, *bookkeeping), key=lambda ignored: ignored.key)),
        tuple(sorted((*left, *unknown))),
        file.metadata,
        file.source,
        tuple(embeddings),
    )


def _entry(file: TensorFile, target: Target, layer: Layer, rules: Rules, found: Sorted) -> Entry | None:
    """Return a layer's entry, or None where it is not whole; what is not used goes into `found`."""
    first = next(iter(layer.values()))[0]
    try:
        family = find_family(frozenset(layer))
        if family is None:
            found.unknown.extend(key for keys in layer.values() for key in keys)
            return None
        first = next(keys[0] for role, keys in layer.items() if role in family.own)
        keys = {
            role: _one_of(file, spellings, found.ignored)
            for role, spellings in layer.items()
            if role in family.taken
        }
        _leave_out(layer, family, found)
        built = build(family, LayerParts(target, keys, {r: file.tensors[k] for r, k in keys.items()}, rules))
    except FormatError as error:
        raise type(error)(f"{file.source}: {target} (`{first}`): {error}") from error
    return Entry(target, built.delta, tuple(sorted(keys.values())), built.source)


def _leave_out(layer: Layer, family: Family, found: Sorted) -> None:
    """Sort out a layer's tensors that its family has no use for."""
    for role, keys in layer.items():
        if role in SCALE and role not in family.taken:
            reason = f"an alpha, which means nothing in a layer of {family.name}"
            found.ignored.extend(Ignored(key, reason) for key in keys)
        elif role == "base_weight" and "embedding_A" in layer:
            reason = "the base model's own embedding, which PEFT saves along"
            found.ignored.extend(Ignored(key, reason) for key in keys)
        elif role not in family.taken:
            found.unknown.extend(keys)


def _one_of(file: TensorFile, keys: list[str], ignored: list[Ignored]) -> str:
    """Return the key to use of several that mean the same tensor, and put the others into `ignored`."""
    if len(keys) == 1:
        return keys[0]
    first, *others = keys
    for other in others:
        one, two = file.tensors[first], file.tensors[other]
        reason = f"the same tensor as `{first}`"
        if one.is_meta or two.is_meta:
            same, reason = one.shape == two.shape, f"the same layer as `{first}` (only headers compared)"
        else:
            same = one.numel() == two.numel() and torch.equal(one.flatten().double(), two.flatten().double())
        if not same:
            raise FormatError(
                f"{file.source}: `{first}` and `{other}` are the same layer in two spellings and hold different "
                "tensors. Which is meant only the file's author can say: remove one of them."
            )
        ignored.append(Ignored(other, reason))
    return first


def _counted_once(entries: Iterable[Entry]) -> list[Entry]:
    """Leave a key that several entries share with the first of them."""
    seen: set[str] = set()
    counted = []
    for entry in entries:
        counted.append(replace(entry, keys=tuple(key for key in entry.keys if key not in seen)))
        seen.update(entry.keys)
    return counted


def _with_lone_alpha(entries: list[Entry], keys: tuple[str, ...]) -> tuple[list[Entry], list[Ignored]]:
    """Count an alpha for all layers with the first that has none of its own; where each has, it says nothing."""
    takers = (i for i, entry in enumerate(entries) if entry.scale_source == "alpha tensor")
    first = next((i for i in takers if not any(key.endswith(_OWN_SCALE) for key in entries[i].keys)), None)
    if not keys or first is None:
        return entries, [
            Ignored(key, "an alpha for layers without one, of which there are none") for key in keys
        ]
    taker = replace(entries[first], keys=(*entries[first].keys, *keys))
    return [*entries[:first], taker, *entries[first + 1 :]], []


def _order(target: Target) -> tuple[str, str, bool]:
    return (target.component, target.path, target.flat)
