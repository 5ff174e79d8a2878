"""kohya's flattened names: what sd-scripts, LyCORIS, A1111 and most of Civitai use.

    lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight
    lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.alpha
    lora_te2_text_model_encoder_layers_0_self_attn_k_proj.lora_up.weight

Pattern: a prefix that stands for the component (`lora_unet_`, `lora_te1_`, … ; `lycoris_` for a denoiser that is not
named, `oft_unet_` for kohya's OFT), the module's path with every `.` written as `_`, and one of `.lora_down.weight`,
`.lora_up.weight`, `.lora_mid.weight` and `.alpha`, or the suffixes of another family (`.hada_w1_a`, `.lokr_w1`,
`.dora_scale`, …). What a flattened path means is settled with the live model. LoRA and LoCon alone are written.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from lorry.adapters import Adapter, Entry
from lorry.dialects._containers import FLAT, find_flat_target
from lorry.dialects._exporting import get_pair, reject_unknown
from lorry.dialects._named import read_named
from lorry.dialects._suffixes import split_suffix
from lorry.dialects.base import Dialect
from lorry.errors import UnsupportedAdapterError
from lorry.files import TensorFile
from lorry.names import DENOISER, DENOISERS

SDXL_CONTEXT = 2048
"""What SDXL's cross attention takes in: the width of its two text encoders together."""


@final
class Kohya(Dialect):
    """kohya's flattened names."""

    name: ClassVar[str] = "kohya"
    before: ClassVar[tuple[str, ...]] = (
        "peft",
        "xlabs",
        "attention-processors",
        "comfyui",
        "lora-layers",
        "dotted-kohya",
        "diffusers",
    )

    def claims(self, file: TensorFile) -> bool:
        prefixes = tuple(FLAT)
        return any(key.startswith(prefixes) and _is_flat(key) for key in file.tensors)

    def read(self, file: TensorFile) -> Adapter:
        return read_named(file, self.name)

    def write(self, adapter: Adapter) -> TensorFile:
        """Return a file of this dialect, with diffusers' block names where the adapter has those.

        An alpha is written as float32, or float64 where float32 cannot hold it; a layer without one gets none.

        Raises:
            UnsupportedAdapterError: the adapter holds what the dialect has no names for.
        """
        reject_unknown(adapter)
        two = _has_two_text_encoders(adapter)
        tensors: dict[str, Tensor] = {}
        for entry in adapter.entries:
            for suffix, tensor in _parts(entry).items():
                tensors[f"{_flat_name(entry, two)}.{suffix}"] = tensor
        return TensorFile(tensors, {**adapter.metadata, "ss_network_module": "networks.lora"}, adapter.source)


def _is_flat(key: str) -> bool:
    ending = split_suffix(key)
    return ending is not None and find_flat_target(ending.stem) is not None


def _parts(entry: Entry) -> dict[str, Tensor]:
    pair = get_pair(entry)
    parts = {"lora_down.weight": pair.down, "lora_up.weight": pair.up}
    if pair.mid is not None:
        parts["lora_mid.weight"] = pair.mid
    if pair.alpha is not None:
        exact = torch.tensor(pair.alpha, dtype=torch.float64)
        parts["alpha"] = exact.float() if exact.float() == exact else exact
    return parts


def _has_two_text_encoders(adapter: Adapter) -> bool:
    """Whether the base has more than one, so that the first is `te1`: SDXL and every transformer."""
    for entry in adapter.entries:
        component, path = entry.target.component, entry.target.path.replace(".", "_")
        if (
            component not in (DENOISER, "unet", "text_encoder")
            or "transformer_blocks" in path.split("_attn")[:1]
        ):
            return True
        if path.endswith("attn2_to_k") and entry.delta.shape[1] == SDXL_CONTEXT:
            return True
    return False


def _flat_name(entry: Entry, two_text_encoders: bool) -> str:
    target = entry.target
    path = target.path.replace(".", "_")
    if target.component == DENOISER or target.component in DENOISERS:
        return f"lora_unet_{path}"
    prefixes = {
        "text_encoder": "lora_te1_" if two_text_encoders else "lora_te_",
        "text_encoder_2": "lora_te2_",
        "text_encoder_3": "lora_te3_",
    }
    if target.component not in prefixes:
        raise UnsupportedAdapterError(f"{target}: kohya's dialect has no name for this component.")
    root = "text_model_" if path.startswith("encoder_layers_") else ""
    return f"{prefixes[target.component]}{root}{path}"
