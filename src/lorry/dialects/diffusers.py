"""diffusers' names of today, with PEFT's suffixes: `save_lora_weights`, SimpleTuner, and most of the Hub.

    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight
    transformer.single_transformer_blocks.0.attn.to_k.lora_B.weight
    text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight

Pattern: the component or nothing, the module's dotted path, and `.lora_A.weight` or `.lora_B.weight`, or the suffixes
of another family, as ComfyUI and ai-toolkit write them. The alpha is folded into the tensors, or stands in the header
under `lora_adapter_metadata`. LoRA and LoCon alone are written.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar, final

from torch import Tensor

from lorry.adapters import Adapter, Entry
from lorry.dialects._exporting import Pair, get_pair, reject_unknown
from lorry.dialects._metadata import METADATA_KEY
from lorry.dialects._named import read_named
from lorry.dialects._suffixes import OTHERS, REFUSED, split_suffix
from lorry.dialects._unflatten import unflatten
from lorry.dialects.base import Dialect
from lorry.errors import UnsupportedAdapterError
from lorry.files import TensorFile
from lorry.names import DENOISER

UNET_ROOTS = (
    "down_blocks",
    "mid_block",
    "up_blocks",
    "conv_in",
    "conv_out",
    "time_embedding",
    "add_embedding",
)
SGM_ROOTS = ("input_blocks_", "middle_block_", "output_blocks_")


@final
class Diffusers(Dialect):
    """diffusers' names of today, with PEFT's suffixes."""

    name: ClassVar[str] = "diffusers"

    def claims(self, file: TensorFile) -> bool:
        return any(".lora_A" in key or _is_of_a_family(key) for key in file.tensors)

    def read(self, file: TensorFile) -> Adapter:
        return read_named(file, self.name)

    def write(self, adapter: Adapter) -> TensorFile:
        """Return a file that diffusers reads, alphas in its header.

        A Tucker core is multiplied into `lora_A` (in float32, rounded to its dtype), for which PEFT has no name.

        Raises:
            UnsupportedAdapterError: the adapter holds what the dialect has no names for, or flattened names whose
                meaning only a model can tell.
        """
        reject_unknown(adapter)
        modules = {_name(entry): _without_core(entry) for entry in adapter.entries}
        tensors: dict[str, Tensor] = {}
        for name, pair in modules.items():
            tensors[f"{name}.lora_A.weight"] = pair.down
            tensors[f"{name}.lora_B.weight"] = pair.up
        return TensorFile(tensors, _header(adapter, modules), adapter.source)


def _is_of_a_family(key: str) -> bool:
    ending = split_suffix(key)
    return ending is not None and (ending.suffix in OTHERS or ending.suffix in REFUSED)


def _name(entry: Entry) -> str:
    target = entry.target
    path = target.path
    if target.flat and path.startswith(SGM_ROOTS):
        raise UnsupportedAdapterError(
            f"{target}: an original (SGM) block name, which only the model can translate. Load it into its pipeline, "
            "and save from there."
        )
    path = unflatten(path) if target.flat else path
    if target.component != DENOISER:
        return f"{target.component}.{path}"
    return f"{'unet' if path.split('.')[0] in UNET_ROOTS else 'transformer'}.{path}"


def _without_core(entry: Entry) -> Pair:
    pair = get_pair(entry)
    if pair.mid is None:
        return pair
    low_rank = entry.delta.low_rank()
    if low_rank is None:
        raise UnsupportedAdapterError(f"{entry.target}: it has no low-rank form.")
    return Pair(low_rank.down, low_rank.up[..., None, None], None, pair.alpha)


def _header(adapter: Adapter, modules: Mapping[str, Pair]) -> dict[str, str]:
    header = {"format": "pt", **{k: v for k, v in adapter.metadata.items() if k != METADATA_KEY}}
    if all(pair.alpha in (None, pair.up.shape[1]) for pair in modules.values()):
        return header
    config: dict[str, Any] = {}
    for component in sorted({name.split(".", 1)[0] for name in modules}):
        inside = {n.split(".", 1)[1]: pair for n, pair in modules.items() if n.startswith(f"{component}.")}
        config.update({f"{component}.{key}": value for key, value in _config(inside).items()})
    return {**header, METADATA_KEY: json.dumps(config, indent=2, sort_keys=True)}


def _config(modules: Mapping[str, Pair]) -> dict[str, Any]:
    """PEFT's description of one component: the commonest rank and alpha, and what differs from them."""
    ranks = {path: pair.up.shape[1] for path, pair in modules.items()}
    alphas = {path: ranks[path] if pair.alpha is None else pair.alpha for path, pair in modules.items()}
    rank, alpha = (Counter(numbers.values()).most_common(1)[0][0] for numbers in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{path}": r for path, r in ranks.items() if r != rank},
        "alpha_pattern": {f"^{path}": a for path, a in alphas.items() if a != alpha},
        "target_modules": sorted(modules),
        "use_rslora": False,
        "peft_type": "LORA",
    }
