"""Dotted module paths with kohya's suffixes: Civitai's on-site trainer, Qwen-Image's, many converters.

    transformer_blocks.0.attn.to_k.lora_down.weight
    transformer.single_transformer_blocks.0.attn.to_q.lora_up.weight
    unet.down_blocks.0.attentions.0.proj_in.alpha

Pattern: the component or nothing, the module's dotted path, and one of `.lora_down.weight`, `.lora_up.weight`,
`.lora_mid.weight` and `.alpha`.
"""

from __future__ import annotations

from typing import ClassVar, final

from lorry.adapters import Adapter
from lorry.dialects._named import read_named
from lorry.dialects.base import Dialect
from lorry.files import TensorFile


@final
class DottedKohya(Dialect):
    """Dotted module paths with kohya's suffixes."""

    name: ClassVar[str] = "dotted-kohya"
    before: ClassVar[tuple[str, ...]] = ("diffusers",)

    def claims(self, file: TensorFile) -> bool:
        return any(".lora_down." in key and "." in key.split(".lora_down.")[0] for key in file.tensors)

    def read(self, file: TensorFile) -> Adapter:
        return read_named(file, self.name)
