"""kohya's flattened names: what sd-scripts, LyCORIS, A1111 and most of Civitai use.

    lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight
    lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.alpha
    lora_te2_text_model_encoder_layers_0_self_attn_k_proj.lora_up.weight

Pattern: a prefix that stands for the component (`lora_unet_`, `lora_te1_`, … ; `lycoris_` for a denoiser that is not
named, `oft_unet_` for kohya's OFT), the module's path with every `.` written as `_`, and one of `.lora_down.weight`,
`.lora_up.weight`, `.lora_mid.weight` and `.alpha`, or the suffixes of another family (`.hada_w1_a`, `.lokr_w1`,
`.dora_scale`, …). Tokens that were trained along stand under `bundle_emb.`, as OneTrainer writes them and A1111 reads
them. What a flattened path means is settled with the live model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from lorry.adapters import Adapter, Entry
from lorry.dialects._apart import take_apart
from lorry.dialects._containers import FLAT, is_flat
from lorry.dialects._embeddings import bundled
from lorry.dialects._exporting import (
    LYCORIS_SUFFIXES,
    ONETRAINER_OFT,
    check_writable,
    find_obstacles,
    nameless,
    spelled,
)
from lorry.dialects._headers import kohya_header
from lorry.dialects._naming import with_clip_root
from lorry.dialects._paths import connectors_name
from lorry.dialects._text_encoders import has_two_text_encoders
from lorry.dialects.base import BlockNames, Dialect
from lorry.files import TensorFile
from lorry.names import CONDITIONER, CONNECTORS, DENOISER

SUFFIXES = {**LYCORIS_SUFFIXES, **ONETRAINER_OFT, "kohya_oft_blocks": "oft_blocks"}
OFT_MODULE = "networks.oft"


@final
class Kohya(Dialect):
    """kohya's flattened names."""

    name: ClassVar[str] = "kohya"
    block_names: ClassVar[BlockNames] = "trained"
    before: ClassVar[tuple[str, ...]] = (
        "comfyui",
        "peft",
        "xlabs",
        "attention-processors",
        "lora-layers",
        "omi",
        "dotted-kohya",
        "diffusers",
    )

    def claims(self, file: TensorFile) -> bool:
        prefixes = tuple(FLAT)
        return any(key.startswith(prefixes) and is_flat(key) for key in file.tensors)

    def obstacles(self, adapter: Adapter) -> Mapping[str, str]:
        return nameless(adapter, lambda target: target.component in _prefixes()) | find_obstacles(
            adapter, SUFFIXES
        )

    def write(self, adapter: Adapter) -> TensorFile:
        """Return a file of this dialect, with the block names that the adapter has.

        An alpha is written in the dtype of its layer's factors, or in the next wider one that holds it; a layer without
        one gets none.

        Raises:
            UnsupportedAdapterError: the adapter holds what the dialect has no names for.
        """
        check_writable(adapter, self.obstacles(adapter), self.name, has_tokens=True)
        two = has_two_text_encoders(adapter)
        is_oft = _is_kohyas_oft(adapter)
        tensors = spelled(adapter.entries, SUFFIXES, lambda entry: _flat_name(entry, two, is_oft))
        tensors |= bundled(adapter.embeddings)
        return TensorFile(tensors, kohya_header(adapter, OFT_MODULE if is_oft else None), adapter.source)


def _is_kohyas_oft(adapter: Adapter) -> bool:
    """Whether an adapter is of kohya's own OFT: its constraint of 0 lets nothing turn, LyCORIS's lets all."""
    said = adapter.metadata.get("ss_network_module", "").startswith(OFT_MODULE)
    roles = [role for entry in adapter.entries for role in take_apart(entry.delta)]
    return "kohya_oft_blocks" in roles or (said and "oft_blocks" in roles)


def _prefixes(two_text_encoders: bool = True, is_oft: bool = False) -> dict[str, str]:
    return {
        **dict.fromkeys((DENOISER, "unet", "transformer"), "oft_unet_" if is_oft else "lora_unet_"),
        "prior": "lora_prior_unet_",
        CONDITIONER: "lora_unet_llm_adapter_",
        CONNECTORS: "lora_unet_",
        "text_encoder": "lora_te1_" if two_text_encoders else "lora_te_",
        "text_encoder_2": "lora_te2_",
        "text_encoder_3": "lora_te3_",
    }


def _flat_name(entry: Entry, two_text_encoders: bool, is_oft: bool) -> str:
    target = with_clip_root(entry.target)
    path = connectors_name(target.path) if target.component == CONNECTORS else target.path
    return _prefixes(two_text_encoders, is_oft)[target.component] + path.replace(".", "_")
