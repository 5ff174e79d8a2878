"""OneTrainer's mixture, its legacy format for SDXL, SD3, Flux and HunyuanVideo: diffusers' names, flattened as kohya's.

    lora_transformer_single_transformer_blocks_0_attn_to_k.lora_down.weight
    lora_transformer_transformer_blocks_0_attn_to_q.dora_scale
    lora_te2_encoder_block_0_layer_0_SelfAttention_k.alpha

Pattern: a prefix that stands for the component (`lora_transformer_` or `lora_unet_`, `lora_te1_`, …), the path of a
module of the diffusers model with every `.` written as `_`, and one of `.lora_down.weight`, `.lora_up.weight`, `.alpha`
and `.dora_scale`, or the suffixes of a LoHa, a LoKr or an OFT of the input side. Tokens that were trained along stand
under `bundle_emb.`. A UNet's file looks as kohya's does, and is read as that.

Source: Nerogar/OneTrainer at 23df383, `modules/util/convert_lora_util.py`, `convert_to_mixture`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from lorry.adapters import Adapter, Entry
from lorry.dialects._containers import is_flat
from lorry.dialects._embeddings import bundled
from lorry.dialects._exporting import (
    ONETRAINER_SUFFIXES,
    check_writable,
    find_obstacles,
    nameless,
    spelled,
)
from lorry.dialects._headers import plain_header
from lorry.dialects._naming import dotted, with_clip_root
from lorry.dialects._text_encoders import has_two_text_encoders
from lorry.dialects.base import Dialect
from lorry.files import TensorFile
from lorry.names import DENOISER

PREFIX = "lora_transformer_"
PREFIXES = {
    "transformer": PREFIX,
    "unet": "lora_unet_",
    "text_encoder": "lora_te1_",
    "text_encoder_2": "lora_te2_",
    "text_encoder_3": "lora_te3_",
    "text_encoder_4": "lora_te4_",
}


@final
class Onetrainer(Dialect):
    """OneTrainer's mixture: diffusers' names, flattened as kohya's."""

    name: ClassVar[str] = "onetrainer"
    before: ClassVar[tuple[str, ...]] = (
        "kohya",
        "peft",
        "xlabs",
        "attention-processors",
        "comfyui",
        "lora-layers",
        "omi",
        "dotted-kohya",
        "diffusers",
    )

    def claims(self, file: TensorFile) -> bool:
        return any(key.startswith(PREFIX) and is_flat(key) for key in file.tensors)

    def obstacles(self, adapter: Adapter) -> Mapping[str, str]:
        named = (DENOISER, *PREFIXES)
        return nameless(adapter, lambda target: target.component in named) | find_obstacles(
            adapter, ONETRAINER_SUFFIXES
        )

    def write(self, adapter: Adapter) -> TensorFile:
        """Return a file of this dialect; Stable Diffusion's one text encoder has no number there.

        Raises:
            UnsupportedAdapterError: the adapter holds what OneTrainer does not train, or flattened names whose meaning
                only a model can tell.
        """
        check_writable(adapter, self.obstacles(adapter), self.name, has_tokens=True)
        first = "lora_te1_" if has_two_text_encoders(adapter) else "lora_te_"
        prefixes = {**PREFIXES, "text_encoder": first}
        tensors = spelled(adapter.entries, ONETRAINER_SUFFIXES, lambda entry: _flat_name(entry, prefixes))
        return TensorFile(tensors | bundled(adapter.embeddings), plain_header(adapter), adapter.source)


def _flat_name(entry: Entry, prefixes: Mapping[str, str]) -> str:
    target = with_clip_root(dotted(entry.target))
    return prefixes[target.component] + target.path.replace(".", "_")
