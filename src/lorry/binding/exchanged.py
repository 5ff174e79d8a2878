"""Names that the original checkpoint and the live model give to different layers: which of the two a file means.

HunyuanDiT's `norm2` and `norm3` are each other's in diffusers. A name of that kind says nothing by itself. The rest of
its file does: a fused `Wqkv` is in the original alone, a `to_q` in the model alone. Where all names of a file are in
both, its dialect decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from lorry.adapters import Adapter, Entry
from lorry.binding.index import ModuleIndex


def with_meant_names(
    adapter: Adapter, indexes: Mapping[str, ModuleIndex], routes: Mapping[str, tuple[str, ...]]
) -> Adapter:
    """Return an adapter whose targets say where they have the original's name for what the model calls otherwise.

    Args:
        adapter: the file's.
        indexes: of the pipeline's models, by component.
        routes: the pipeline's components for each that the file names.
    """
    original = {
        component
        for component, found in routes.items()
        if found and found[0] in indexes and _has_original_names(adapter, component, indexes[found[0]])
    }
    if not original:
        return adapter

    def meant(entry: Entry) -> Entry:
        component = entry.target.component
        if component not in original or not indexes[routes[component][0]].is_exchanged(entry.target):
            return entry
        return replace(entry, target=replace(entry.target, original=True))

    return replace(adapter, entries=tuple(meant(entry) for entry in adapter.entries))


def _has_original_names(adapter: Adapter, component: str, index: ModuleIndex) -> bool:
    targets = [entry.target for entry in adapter.entries if entry.target.component == component]
    if not any(index.is_exchanged(target) for target in targets):
        return False
    told = Counter(index.names_in(target) for target in targets)
    if told["original"] == told["diffusers"]:
        return adapter.block_names == "original"
    return told["original"] > told["diffusers"]
