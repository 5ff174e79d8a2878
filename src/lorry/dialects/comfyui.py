"""ComfyUI's containers: ai-toolkit, diffusion-pipe, musubi-tuner's converted files, and most of what Civitai has for
transformers.

    diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight
    diffusion_model.blocks.0.self_attn.q.lora_down.weight
    text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.lora_B.weight

Pattern: `diffusion_model.` for the denoiser or `text_encoders.` with a text encoder's name and `transformer.`, the
module's dotted path, most often under the original checkpoint's name, and the suffixes of any family: PEFT's or kohya's
for LoRA, `.diff`, `.diff_b` and `.set_weight` for what is no LoRA. Written are kohya's and LyCORIS's suffixes, but
`.diff` and `.diff_b` for norm layers.

Source: Comfy-Org/ComfyUI, `comfy/lora.py` (`model_lora_keys_unet`, `model_lora_keys_clip`), `comfy/weight_adapter/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from lorry.adapters import Adapter, Entry
from lorry.algebra import ReplaceDelta
from lorry.dialects._exporting import LYCORIS_SUFFIXES, check_writable, find_obstacles, spelled
from lorry.dialects._headers import plain_header
from lorry.dialects._named import read_named
from lorry.dialects._naming import dotted, with_clip_root
from lorry.dialects._suffixes import split_suffix
from lorry.dialects.base import BlockNames, Dialect
from lorry.errors import UnsupportedAdapterError
from lorry.files import TensorFile
from lorry.names import DENOISERS

UNREAD = ("ia3_weight", "on_input", "bias_indices", "bias_values", "bias_size")
"""LyCORIS's (IA)^3 and sparse differences, which ComfyUI does not apply."""
SUFFIXES = {role: suffix for role, suffix in LYCORIS_SUFFIXES.items() if role not in UNREAD}
SUFFIXES |= {"w_norm": "diff", "b_norm": "diff_b", "saved_weight": "set_weight"}
NORM_SCALES = ("query_norm", "key_norm")
"""Norms whose parameter Flux's original checkpoint calls `scale`, which ComfyUI's names of whole tensors end in."""
CONTAINERS = ("diffusion_model.", "text_encoders.")
T5_ROOT = "encoder.block."


@final
class Comfyui(Dialect):
    """ComfyUI's containers."""

    name: ClassVar[str] = "comfyui"
    block_names: ClassVar[BlockNames] = "original"
    before: ClassVar[tuple[str, ...]] = ("lora-layers", "dotted-kohya", "diffusers")

    def claims(self, file: TensorFile) -> bool:
        return any(key.startswith(CONTAINERS) and split_suffix(key) is not None for key in file.tensors)

    def read(self, file: TensorFile) -> Adapter:
        return read_named(file, self.name)

    def obstacles(self, adapter: Adapter) -> Mapping[str, str]:
        return find_obstacles(adapter, SUFFIXES)

    def write(self, adapter: Adapter) -> TensorFile:
        """Return a file that ComfyUI reads, with the block names that the adapter has.

        Raises:
            UnsupportedAdapterError: the adapter holds what ComfyUI does not apply, or flattened names whose meaning
                only a model can tell.
        """
        check_writable(adapter, self.obstacles(adapter), self.name)
        return TensorFile(spelled(adapter.entries, SUFFIXES, _name), plain_header(adapter), adapter.source)


def _name(entry: Entry) -> str:
    target = with_clip_root(dotted(entry.target))
    if target.component in (*DENOISERS[:2], "prior"):
        is_scale = isinstance(entry.delta, ReplaceDelta) and target.path.endswith(NORM_SCALES)
        return f"diffusion_model.{target.path}{'.scale' if is_scale else ''}"
    encoders = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    name = "t5xxl" if target.path.startswith(T5_ROOT) else encoders.get(target.component)
    if name is None:
        raise UnsupportedAdapterError(f"{target}: ComfyUI's dialect has no name for this component.")
    return f"text_encoders.{name}.transformer.{target.path}"
