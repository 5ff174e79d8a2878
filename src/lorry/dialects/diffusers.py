"""diffusers' names of today, with PEFT's suffixes: `save_lora_weights`, SimpleTuner, and most of the Hub.

    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight
    transformer.single_transformer_blocks.0.attn.to_k.lora_B.weight
    text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight

Pattern: the component or nothing, the module's dotted path, and `.lora_A.weight` or `.lora_B.weight`, or the suffixes
of another family, as ComfyUI and ai-toolkit write them. The alpha is folded into the tensors, or stands in the header
under `lora_adapter_metadata`. Written is what diffusers itself applies: LoRA, LoCon, DoRA of rows, and biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from lorry.adapters import Adapter, Entry
from lorry.dialects._apart import take_apart
from lorry.dialects._exporting import check_writable, spelled
from lorry.dialects._headers import config_header, kept_configs
from lorry.dialects._naming import dotted, with_clip_root
from lorry.dialects._peft_apart import LORA_SUFFIXES, take_apart_for_peft
from lorry.dialects._peft_writing import find_peft_obstacles, make_configs
from lorry.dialects._suffixes import OTHERS, REFUSED, split_suffix
from lorry.dialects.base import Dialect
from lorry.files import TensorFile


@final
class Diffusers(Dialect):
    """diffusers' names of today, with PEFT's suffixes."""

    name: ClassVar[str] = "diffusers"

    def claims(self, file: TensorFile) -> bool:
        return any(".lora_A" in key or _is_of_a_family(key) for key in file.tensors)

    def obstacles(self, adapter: Adapter) -> Mapping[str, str]:
        return find_peft_obstacles(adapter, LORA_SUFFIXES)

    def write(self, adapter: Adapter) -> TensorFile:
        """Return a file that diffusers reads, alphas in its header.

        Raises:
            UnsupportedAdapterError: the adapter holds what diffusers' loader does not apply, or flattened names whose
                meaning only a model can tell.
        """
        check_writable(adapter, self.obstacles(adapter), self.name)
        tensors = spelled(adapter.entries, LORA_SUFFIXES, _name, take_apart_for_peft)
        configs = make_configs(adapter) if _needs_configs(adapter) else {}
        return TensorFile(tensors, config_header(adapter, configs), adapter.source)


def _is_of_a_family(key: str) -> bool:
    ending = split_suffix(key)
    return ending is not None and (ending.suffix in OTHERS or ending.suffix in REFUSED)


def _name(entry: Entry) -> str:
    return str(with_clip_root(dotted(entry.target)))


def _needs_configs(adapter: Adapter) -> bool:
    """Whether any layer has an alpha, which the tensors of this dialect do not tell."""
    return bool(kept_configs(adapter.metadata)) or any(
        "alpha" in take_apart(entry.delta) for entry in adapter.entries
    )
