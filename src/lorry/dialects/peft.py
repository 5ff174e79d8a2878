"""PEFT's adapter folders: `adapter_model.safetensors` with `adapter_config.json` beside it.

    base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight
    base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight
    transformer.base_model.model.transformer_blocks.0.attn.to_k.lora_A.default.weight

Pattern: `base_model.model.`, once or more, the module's dotted path, and `.lora_A.weight` or `.lora_B.weight`, or the
suffixes of the config's `peft_type`: LoHa, LoKr, OFT, BOFT, (IA)^3, HRA, or VeRA, whose shared matrices stand once
(`base_model.vera_A`). The file names no component; alpha, its exceptions (`alpha_pattern`), `use_rslora` and what else
the tensors do not show stand in the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from lorry.adapters import Adapter, Entry
from lorry.dialects._exporting import check_writable, spelled
from lorry.dialects._headers import config_header
from lorry.dialects._naming import dotted
from lorry.dialects._peft_apart import PEFT_SUFFIXES, take_apart_for_peft
from lorry.dialects._peft_writing import find_peft_obstacles, make_configs, shared_matrices, with_embeddings
from lorry.dialects.base import Dialect
from lorry.files import TensorFile


@final
class Peft(Dialect):
    """PEFT's adapter folders."""

    name: ClassVar[str] = "peft"
    before: ClassVar[tuple[str, ...]] = (
        "xlabs",
        "attention-processors",
        "comfyui",
        "lora-layers",
        "omi",
        "dotted-kohya",
        "diffusers",
    )

    def claims(self, file: TensorFile) -> bool:
        return any("base_model.model." in key for key in file.tensors)

    def obstacles(self, adapter: Adapter) -> Mapping[str, str]:
        return find_peft_obstacles(adapter, PEFT_SUFFIXES)

    def write(self, adapter: Adapter) -> TensorFile:
        """Return the adapter as one file, keys preceded by their component and configs in the header.

        That is how a folder with one of PEFT's folders a component is read; `files.write_folders` takes it apart.

        Raises:
            UnsupportedAdapterError: the adapter holds what PEFT has no type for, or what one config cannot describe, or
                flattened names whose meaning only a model can tell.
        """
        check_writable(adapter, self.obstacles(adapter), self.name)
        entries = with_embeddings(adapter).entries
        tensors = spelled(entries, PEFT_SUFFIXES, _name, take_apart_for_peft) | shared_matrices(adapter)
        return TensorFile(tensors, config_header(adapter, make_configs(adapter)), adapter.source)


def _name(entry: Entry) -> str:
    target = dotted(entry.target)
    return f"{target.component}.base_model.model.{target.path}"
