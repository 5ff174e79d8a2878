"""diffusers' old attention processors: `save_attn_procs` of diffusers 0.11 to 0.19.

    down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight
    unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.up.weight
    text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight

Pattern: the component or nothing, the attention's path, `processor` on a UNet, the layer's name with `_lora`, and
`down` or `up`. `to_out_lora` changes `to_out.0`; a text encoder's `to_q_lora` changes `q_proj`. No alpha: scale 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from lorry.adapters import Adapter, Entry
from lorry.dialects._naming import dotted, with_clip_root
from lorry.dialects._paths import is_processor_key, processor_path
from lorry.dialects._plain_loras import find_plain_obstacles, write_plain
from lorry.dialects.base import Dialect
from lorry.files import TensorFile
from lorry.names import TEXT_ENCODERS


@final
class AttentionProcessors(Dialect):
    """diffusers' old attention processors."""

    name: ClassVar[str] = "attention-processors"
    before: ClassVar[tuple[str, ...]] = ("comfyui", "lora-layers", "omi", "dotted-kohya", "diffusers")

    def claims(self, file: TensorFile) -> bool:
        return any(map(is_processor_key, file.tensors))

    def obstacles(self, adapter: Adapter) -> Mapping[str, str]:
        return find_plain_obstacles(adapter, _name)

    def write(self, adapter: Adapter) -> TensorFile:
        """Return a file that diffusers from 0.17 on reads.

        Raises:
            UnsupportedAdapterError: the adapter holds more than LoRAs at scale 1 on attentions' projections, or
                flattened names whose meaning only a model can tell.
        """
        return write_plain(adapter, self.obstacles(adapter), _name, self.name)


def _name(entry: Entry) -> str | None:
    target = with_clip_root(dotted(entry.target))
    is_text = target.component in TEXT_ENCODERS
    path = processor_path(target.path, is_text) if is_text or target.component == "unet" else None
    return None if path is None or len(entry.delta.shape) > 2 else f"{target.component}.{path}"
