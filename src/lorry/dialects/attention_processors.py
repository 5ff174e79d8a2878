"""diffusers' old attention processors: `save_attn_procs` of diffusers 0.11 to 0.19.

    down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight
    unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.up.weight
    text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight

Pattern: the component or nothing, the attention's path, `processor` on a UNet, the layer's name with `_lora`, and
`down` or `up`. `to_out_lora` changes `to_out.0`; a text encoder's `to_q_lora` changes `q_proj`. No alpha: scale 1.
"""

from __future__ import annotations

from typing import ClassVar, final

from lorry.adapters import Adapter
from lorry.dialects._named import read_named
from lorry.dialects._paths import is_processor_key
from lorry.dialects.base import Dialect
from lorry.files import TensorFile


@final
class AttentionProcessors(Dialect):
    """diffusers' old attention processors."""

    name: ClassVar[str] = "attention-processors"
    before: ClassVar[tuple[str, ...]] = ("comfyui", "lora-layers", "dotted-kohya", "diffusers")

    def claims(self, file: TensorFile) -> bool:
        return any(map(is_processor_key, file.tensors))

    def read(self, file: TensorFile) -> Adapter:
        return read_named(file, self.name)
