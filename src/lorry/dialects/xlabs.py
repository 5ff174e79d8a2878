"""XLabs' processors on Flux: x-flux, and ByteDance's USO.

    double_blocks.0.processor.qkv_lora1.down.weight
    double_blocks.0.processor.proj_lora2.up.weight
    diffusion_model.single_blocks.37.processor.qkv_lora.down.weight

Pattern: nothing or `diffusion_model.`, a block of Black Forest Labs' names, `processor`, the layer, and `down` or `up`.
In a double block `lora1` is for the image's stream and `lora2` for the text's. In a single block `qkv_lora` is for the
first three parts of the rows of `linear1`, and `proj_lora` for `linear2`. No alpha: scale 1.

XLabs' own loader makes processors for FLUX.1's width alone, of one rank, and wants every layer of a block that a file
has any of: only such files are written. The loaders of others, lorry's too, take blocks by the layer and by the rank.

Source: XLabs-AI/x-flux, `src/flux/modules/layers.py` and `src/flux/xflux_pipeline.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, final

from lorry.adapters import Adapter, Entry
from lorry.algebra import LoraDelta
from lorry.dialects._paths import ATTENTION_ROWS, is_xlabs_key, xlabs_path
from lorry.dialects._plain_loras import find_plain_obstacles, write_plain
from lorry.dialects.base import BlockNames, Dialect
from lorry.files import TensorFile

WIDTH = 3072
"""FLUX.1's."""
_LAYERS = {
    "double_blocks": {"qkv_lora1": (3, 1), "proj_lora1": (1, 1), "qkv_lora2": (3, 1), "proj_lora2": (1, 1)},
    "single_blocks": {"qkv_lora": (3, 1), "proj_lora": (1, 5)},
}
"""What a processor of each kind of block has: by layer, how many widths there are of rows and of columns."""


@final
class Xlabs(Dialect):
    """XLabs' processors on Flux."""

    name: ClassVar[str] = "xlabs"
    block_names: ClassVar[BlockNames] = "original"
    only_for: ClassVar[tuple[str, ...]] = ("FluxTransformer2DModel",)
    before: ClassVar[tuple[str, ...]] = (
        "attention-processors",
        "comfyui",
        "lora-layers",
        "omi",
        "dotted-kohya",
        "diffusers",
    )

    def claims(self, file: TensorFile) -> bool:
        return any(map(is_xlabs_key, file.tensors))

    def obstacles(self, adapter: Adapter) -> Mapping[str, str]:
        adapter = _of_attention(adapter)
        return find_plain_obstacles(adapter, _name) or _find_unreadable(adapter)

    def write(self, adapter: Adapter) -> TensorFile:
        """Return a file of XLabs' processors, with Black Forest Labs' block names that the adapter has.

        Raises:
            UnsupportedAdapterError: the adapter holds more than LoRAs at scale 1 on the attentions of Flux's blocks, or
                something that XLabs' own loader fails on.
        """
        return write_plain(_of_attention(adapter), self.obstacles(adapter), _name, self.name)


def _name(entry: Entry) -> str | None:
    return None if len(entry.delta.shape) > 2 else xlabs_path(entry.target.path)


def _find_unreadable(adapter: Adapter) -> dict[str, str]:
    """Return, by target, what XLabs' own loader fails on in layers that have a name."""
    found: dict[str, str] = {}
    missing = _missing_layers(adapter)
    rank = 0
    for entry in adapter.entries:
        block, _, layer = (_name(entry) or "").rpartition(".")
        rows, columns = (WIDTH * times for times in _LAYERS[block.partition(".")[0]][layer])
        delta = entry.delta
        if not isinstance(delta, LoraDelta):
            continue
        rank = rank or delta.rank
        if tuple(delta.shape) != (rows, columns):
            found[str(entry.target)] = f"it is {tuple(delta.shape)}, and FLUX.1's is {(rows, columns)}"
        elif delta.rank != rank:
            found[str(entry.target)] = (
                f"rank {delta.rank} beside rank {rank}, and XLabs has one for all layers"
            )
        elif missing[block]:
            found[str(entry.target)] = (
                f"the block's {', '.join(missing[block])} is not there, and XLabs wants all"
            )
    return found


def _missing_layers(adapter: Adapter) -> Mapping[str, list[str]]:
    """Return, by processor, the layers that it has in XLabs' model and not in an adapter."""
    there: defaultdict[str, set[str]] = defaultdict(set)
    for entry in adapter.entries:
        block, _, layer = (_name(entry) or "").rpartition(".")
        there[block].add(layer)
    return {
        block: [layer for layer in _LAYERS[block.partition(".")[0]] if layer not in layers]
        for block, layers in there.items()
    }


def _of_attention(adapter: Adapter) -> Adapter:
    """An adapter with the attention's rows of each `linear1` alone, where its other rows are zeros."""
    return replace(adapter, entries=tuple(map(_narrowed, adapter.entries)))


def _narrowed(entry: Entry) -> Entry:
    delta, target = entry.delta, entry.target
    if not target.path.endswith(".linear1") or not isinstance(delta, LoraDelta):
        return entry
    rows = 3 * delta.shape[1]
    if delta.up[rows:].any():
        return entry
    path = f"{target.path}.{ATTENTION_ROWS}"
    return replace(entry, target=replace(target, path=path), delta=replace(delta, up=delta.up[:rows]))
