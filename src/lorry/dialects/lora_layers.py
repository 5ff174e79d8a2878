"""diffusers' LoRA layers: the training scripts of diffusers 0.20 to 0.24.

    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight
    unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.lora.up.weight
    text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight

Pattern: the component, the module's dotted path, `lora` on a UNet and `lora_linear_layer` on a text encoder, and
`down` or `up`. No alpha: scale 1. Source: huggingface/diffusers v0.22, `models/lora.py`, `loaders/lora.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from lorry.adapters import Adapter, Entry
from lorry.dialects._naming import dotted, with_clip_root
from lorry.dialects._plain_loras import find_plain_obstacles, write_plain
from lorry.dialects.base import Dialect
from lorry.files import TensorFile


@final
class LoraLayers(Dialect):
    """diffusers' LoRA layers."""

    name: ClassVar[str] = "lora-layers"
    before: ClassVar[tuple[str, ...]] = ("omi", "dotted-kohya", "diffusers")

    def claims(self, file: TensorFile) -> bool:
        return any(".lora.down" in key or ".lora_linear_layer.down." in key for key in file.tensors)

    def obstacles(self, adapter: Adapter) -> Mapping[str, str]:
        return find_plain_obstacles(adapter, _name)

    def write(self, adapter: Adapter) -> TensorFile:
        """Return a file that diffusers from 0.20 on reads.

        Raises:
            UnsupportedAdapterError: the adapter holds more than LoRAs at scale 1, or flattened names whose meaning only
                a model can tell.
        """
        return write_plain(adapter, self.obstacles(adapter), _name, self.name)


def _name(entry: Entry) -> str:
    target = with_clip_root(dotted(entry.target))
    suffix = "lora_linear_layer" if target.component.startswith("text_encoder") else "lora"
    return f"{target}.{suffix}"
