"""The LoRAs of SAT, SwissArmyTransformer, which trains CogVideoX in the original's names.

    model.diffusion_model.transformer.layers.0.attention.query_key_value.matrix_A.0
    model.diffusion_model.transformer.layers.0.attention.query_key_value.matrix_B.2
    transformer.layers.0.attention.dense.matrix_A.0

Pattern: the original's path, `matrix_A` (down) or `matrix_B` (up), and the number of a part: 0, 1 and 2 are q, k and v
of the fused layer, each with factors of its own. The strength is alpha / rank with an alpha of 1, SAT's default, which
no published configuration changes and no file holds. A checkpoint of SAT has all weights of the model besides, which a
LoRA leaves as they were (`….original.weight`).

Source: THUDM/SwissArmyTransformer, `sat/model/finetune/lora2.py`; zai-org/CogVideo at 7a1af71,
`tools/export_sat_lora_weight.py`, `tools/load_cogvideox_lora.py` and `sat/configs`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import ClassVar, final

import torch

from lorry.adapters import Adapter, Entry, Ignored
from lorry.dialects._named import read_named
from lorry.dialects.base import BlockNames, Dialect
from lorry.errors import FormatError
from lorry.files import TensorFile

_KEY = re.compile(r"(?:model\.diffusion_model\.)?(?P<layer>.+)\.matrix_(?P<factor>[AB])\.(?P<part>\d+)")


@final
class Sat(Dialect):
    """SAT's LoRAs."""

    name: ClassVar[str] = "sat"
    before: ClassVar[tuple[str, ...]] = ()
    block_names: ClassVar[BlockNames] = "original"

    def claims(self, file: TensorFile) -> bool:
        return any(".matrix_" in key and _KEY.fullmatch(key) for key in file.tensors)

    def read(self, file: TensorFile) -> Adapter:
        found = {key: match for key in file.tensors if (match := _KEY.fullmatch(key))}
        counts = Counter(layer for layer, _ in {(m["layer"], m["part"]) for m in found.values()})
        keys: dict[str, str] = {}
        for key, match in found.items():
            layer = match["layer"] if counts[match["layer"]] == 1 else f"{match['layer']}.{match['part']}"
            keys[f"{layer}.lora_{match['factor']}.weight"] = key
        tensors = {name: file.tensors[key] for name, key in keys.items()}
        alphas = {f"{name.rpartition('.lora_')[0]}.alpha": torch.ones((), device="cpu") for name in keys}
        try:
            named = read_named(replace(file, tensors=tensors | alphas), self.name)
        except FormatError as error:
            raise FormatError(_with_own_keys(str(error), keys)) from error
        rest = file.tensors.keys() - found.keys()
        return replace(
            named,
            entries=tuple(_own(entry, keys) for entry in named.entries),
            ignored=tuple(
                Ignored(key, "the model's own weight, which SAT saves beside the LoRA")
                for key in sorted(rest)
            ),
            unknown=tuple(keys[name] for name in named.unknown if name in keys),
        )


def _with_own_keys(message: str, keys: dict[str, str]) -> str:
    for name, key in keys.items():
        message = message.replace(f"`{name}`", f"`{key}`")
    return message


def _own(entry: Entry, keys: dict[str, str]) -> Entry:
    """Return an entry with the file's own keys."""
    return replace(entry, keys=tuple(keys[key] for key in entry.keys if key in keys), scale_source="dialect")
