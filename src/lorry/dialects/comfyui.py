"""ComfyUI's containers: ai-toolkit, diffusion-pipe, musubi-tuner's converted files, and most of what Civitai has for
transformers.

    diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight
    diffusion_model.blocks.0.self_attn.q.lora_down.weight
    text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.lora_B.weight

Pattern: `diffusion_model.` for the denoiser or `text_encoders.` with a text encoder's name and `transformer.`, the
module's dotted path, most often under the original checkpoint's name, and the suffixes of any family: PEFT's or kohya's
for LoRA, `.diff`, `.diff_b` and `.set_weight` for what is no LoRA. Written are kohya's and LyCORIS's suffixes, but
`.diff` and `.diff_b` for norm layers, and `img_in.reshape_weight` for the layer that Flux's control LoRAs widen.

Source: Comfy-Org/ComfyUI, `comfy/lora.py` (`model_lora_keys_unet`, `model_lora_keys_clip`), `comfy/weight_adapter/`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import ClassVar, final

import torch
from torch import Tensor

from lorry.adapters import Adapter, Entry
from lorry.algebra import ReplaceDelta
from lorry.dialects._comfyui_encoders import classes_in, encoder_stem
from lorry.dialects._exporting import LYCORIS_SUFFIXES, check_writable, find_obstacles, spelled
from lorry.dialects._headers import plain_header
from lorry.dialects._named import read_named
from lorry.dialects._naming import dotted, with_clip_root
from lorry.dialects._paths import connectors_name
from lorry.dialects._suffixes import split_suffix
from lorry.dialects.base import BlockNames, Dialect
from lorry.files import TensorFile
from lorry.names import CONDITIONER, CONNECTORS, DENOISER, DENOISERS

UNREAD = ("ia3_weight", "on_input", "bias_indices", "bias_values", "bias_size")
"""LyCORIS's (IA)^3 and sparse differences, which ComfyUI does not apply."""
SUFFIXES = {role: suffix for role, suffix in LYCORIS_SUFFIXES.items() if role not in UNREAD}
SUFFIXES |= {"w_norm": "diff", "b_norm": "diff_b", "saved_weight": "set_weight"}
_LIVE_NAMES = (
    (r"((?:double|single)_blocks\.\d+\.(?:img|txt))_attn_(qkv|proj)", r"\1_attn.\2"),
    (r"((?:double|single)_blocks\.\d+\.(?:img|txt))_attn_q_norm", r"\1_attn.norm.query_norm"),
    (r"((?:double|single)_blocks\.\d+\.(?:img|txt))_attn_k_norm", r"\1_attn.norm.key_norm"),
    (r"(single_blocks\.\d+)\.q_norm", r"\1.norm.query_norm"),
    (r"(single_blocks\.\d+)\.k_norm", r"\1.norm.key_norm"),
    (r"((?:double|single)_blocks\.\d+\.(?:\w+_mod|modulation))\.linear", r"\1.lin"),
    (r"(txt_in\.individual_token_refiner\.blocks\.\d+\.self_attn)_(qkv|proj)", r"\1.\2"),
    (r"((?:txt_in\.individual_token_refiner|double)\S*mlp)\.fc1", r"\1.0"),
    (r"((?:txt_in\.individual_token_refiner|double)\S*mlp)\.fc2", r"\1.2"),
    (r"((?:time|time_r|guidance)_in|txt_in\.t_embedder)\.mlp\.0", r"\1.in_layer"),
    (r"((?:time|time_r|guidance)_in|txt_in\.t_embedder)\.mlp\.2", r"\1.out_layer"),
    (r"(txt_in\.c_embedder)\.linear_1", r"\1.in_layer"),
    (r"(txt_in\.c_embedder)\.linear_2", r"\1.out_layer"),
)
"""What ComfyUI calls modules of HunyuanVideo otherwise than its checkpoints do: it renames them when it loads one, and
knows some under both names."""
CONTAINERS = ("diffusion_model.", "text_encoders.")


@final
class Comfyui(Dialect):
    """ComfyUI's containers."""

    name: ClassVar[str] = "comfyui"
    block_names: ClassVar[BlockNames] = "original"
    before: ClassVar[tuple[str, ...]] = ("lora-layers", "omi", "dotted-kohya", "diffusers")

    def claims(self, file: TensorFile) -> bool:
        return any(key.startswith(CONTAINERS) and split_suffix(key) is not None for key in file.tensors)

    def read(self, file: TensorFile) -> Adapter:
        return replace(read_named(file, self.name), text_encoders=classes_in(file.tensors))

    def obstacles(self, adapter: Adapter) -> Mapping[str, str]:
        without = {
            str(entry.target): "no name for this component"
            for entry in adapter.entries
            if _container(adapter, entry) is None
        }
        return without | find_obstacles(adapter, SUFFIXES)

    def write(self, adapter: Adapter) -> TensorFile:
        """Return a file that ComfyUI reads, with the block names that the adapter has.

        Raises:
            UnsupportedAdapterError: the adapter holds what ComfyUI does not apply, or flattened names whose meaning
                only a model can tell.
        """
        check_writable(adapter, self.obstacles(adapter), self.name)
        tensors = spelled(adapter.entries, SUFFIXES, partial(_name, adapter)) | _wider_shapes(adapter)
        return TensorFile(tensors, plain_header(adapter), adapter.source)


def _name(adapter: Adapter, entry: Entry) -> str:
    target = with_clip_root(dotted(entry.target))
    path = target.path
    if target.component == CONNECTORS:
        path = connectors_name(path)
    elif not target.component.startswith("text_encoder"):
        path = live_name(path)
    elif path.startswith("layers."):
        path = f"model.{path}"
    return f"{_container(adapter, entry)}{path}"


def _container(adapter: Adapter, entry: Entry) -> str | None:
    """Return what stands in front of a path; None where ComfyUI has no name for the component."""
    component = entry.target.component
    if component in (DENOISER, *DENOISERS[:2], "prior"):
        return "diffusion_model."
    if component == CONDITIONER:
        return "diffusion_model.llm_adapter."
    if component == CONNECTORS:
        return "" if entry.target.path.replace("_", ".").endswith("text.proj.in") else "diffusion_model."
    stem = encoder_stem(adapter, entry)
    return None if stem is None else f"text_encoders.{stem}"


def _wider_shapes(adapter: Adapter) -> dict[str, Tensor]:
    """Return what tells ComfyUI to widen Flux's first layer for a control LoRA.

    Such an adapter is known by the scales of norms that it replaces.
    """
    if not any(isinstance(entry.delta, ReplaceDelta) for entry in adapter.entries):
        return {}
    return {
        f"{_name(adapter, entry)}.reshape_weight": torch.tensor(entry.delta.shape, device="cpu")
        for entry in adapter.entries
        if entry.target.path == "img_in" and entry.delta.part("weight") is not None
    }


def live_name(path: str) -> str:
    """Return what ComfyUI calls a module of an original checkpoint."""
    for pattern, name in _LIVE_NAMES:
        if (found := re.fullmatch(pattern, path)) is not None:
            return found.expand(name)
    return path
