"""Dotted module paths with kohya's suffixes: Civitai's on-site trainer, Qwen-Image's, many converters.

    transformer_blocks.0.attn.to_k.lora_down.weight
    transformer.single_transformer_blocks.0.attn.to_q.lora_up.weight
    unet.down_blocks.0.attentions.0.proj_in.alpha

Pattern: the component or nothing, the module's dotted path (or, with nothing in front, its flattened one), and one of
`.lora_down.weight`, `.lora_up.weight`, `.lora_mid.weight`, `.alpha` and `.dora_scale`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from lorry.adapters import Adapter, Entry
from lorry.dialects._exporting import LYCORIS_SUFFIXES, check_writable, find_obstacles, spelled
from lorry.dialects._headers import plain_header
from lorry.dialects._naming import dotted, with_clip_root
from lorry.dialects.base import Dialect
from lorry.files import TensorFile

SUFFIXES = {role: LYCORIS_SUFFIXES[role] for role in ("down", "up", "mid", "alpha", "dora_scale")}


@final
class DottedKohya(Dialect):
    """Dotted module paths with kohya's suffixes."""

    name: ClassVar[str] = "dotted-kohya"
    before: ClassVar[tuple[str, ...]] = ("diffusers",)

    def claims(self, file: TensorFile) -> bool:
        return any(".lora_down." in key for key in file.tensors)

    def obstacles(self, adapter: Adapter) -> Mapping[str, str]:
        return find_obstacles(adapter, SUFFIXES)

    def write(self, adapter: Adapter) -> TensorFile:
        """Return a file of this dialect, with its component in front of each path.

        Raises:
            UnsupportedAdapterError: the adapter holds more than LoRA, LoCon and DoRA, or flattened names whose meaning
                only a model can tell.
        """
        check_writable(adapter, self.obstacles(adapter), self.name)
        return TensorFile(spelled(adapter.entries, SUFFIXES, _name), plain_header(adapter), adapter.source)


def _name(entry: Entry) -> str:
    return str(with_clip_root(dotted(entry.target)))
