"""DiffSynth-Studio's LoRAs of MiniMax-H3, whose fused q, k and v are in another order than everybody else's.

    blocks.0.attn.qkv_proj.lora_A.default.weight
    token_refiner.blocks.1.attn.qkv_proj.lora_B.default.weight
    blocks.0.mlp.fc1.lora_A.default.weight

Pattern: the original checkpoint's module path, and PEFT's suffixes of a live model with the adapter's name `default`.
DiffSynth trains on the published shards as they are, where the rows of `qkv_proj` go head by head: q, k and v of the
first head, then of the second. All others first put the rows in the order q, k, v. Shapes are the same; the name
`default` in the keys tells the two apart. A head has 128 rows of each in every published model. Read are the rows in
the usual order.

Source: diffusers 0.42.1, `loaders/lora_conversion_utils.py`, `_convert_non_diffusers_minimax_h3_lora_to_diffusers`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import ClassVar, final

from lorry.adapters import Adapter, Entry
from lorry.algebra import Spans, cut_rows
from lorry.dialects._named import read_named
from lorry.dialects.base import Dialect
from lorry.errors import FormatError
from lorry.files import TensorFile

HEAD = 128
_FUSED = re.compile(r"(?:token_refiner\.)?blocks\.\d+\.attn\.qkv_proj")
_KEY = re.compile(rf"(?:diffusion_model\.)?{_FUSED.pattern}\.lora_[AB]\.default\.weight")


@final
class DiffsynthH3(Dialect):
    """DiffSynth-Studio's LoRAs of MiniMax-H3."""

    name: ClassVar[str] = "diffsynth-h3"
    before: ClassVar[tuple[str, ...]] = ("comfyui", "diffusers")

    def claims(self, file: TensorFile) -> bool:
        return any(".qkv_proj." in key and _KEY.fullmatch(key) for key in file.tensors)

    def read(self, file: TensorFile) -> Adapter:
        adapter = read_named(file, self.name)
        return replace(
            adapter, entries=tuple(_in_usual_order(entry, file.source) for entry in adapter.entries)
        )


def _in_usual_order(entry: Entry, source: str) -> Entry:
    if _FUSED.fullmatch(entry.target.path) is None:
        return entry
    rows = entry.delta.shape[0]
    if rows <= 0 or rows % (3 * HEAD):
        raise FormatError(
            f"{source}: {entry.target}: expected {3 * HEAD} rows for each head of a MiniMax-H3, got {rows} rows."
        )
    return replace(entry, delta=cut_rows(entry.delta, _by_kind(rows)))


def _by_kind(rows: int) -> Spans:
    """Return the spans of all heads' q, then k, then v."""
    return tuple((first, first + HEAD) for kind in range(3) for first in range(kind * HEAD, rows, 3 * HEAD))
