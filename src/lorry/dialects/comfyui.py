"""ComfyUI's containers: ai-toolkit, diffusion-pipe, musubi-tuner's converted files, and most of what Civitai has for
transformers.

    diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight
    diffusion_model.blocks.0.self_attn.q.lora_down.weight
    text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.lora_B.weight

Pattern: `diffusion_model.` for the denoiser or `text_encoders.` with a text encoder's name and `transformer.`, the
module's dotted path, most often under the original checkpoint's name, and the suffixes of any family: PEFT's or kohya's
for LoRA, `.diff`, `.diff_b` and `.set_weight` for what is no LoRA.

Source: Comfy-Org/ComfyUI, `comfy/lora.py` (`model_lora_keys_unet`, `model_lora_keys_clip`).
"""

from __future__ import annotations

from typing import ClassVar, final

from lorry.adapters import Adapter
from lorry.dialects._named import read_named
from lorry.dialects._suffixes import split_suffix
from lorry.dialects.base import Dialect
from lorry.files import TensorFile

CONTAINERS = ("diffusion_model.", "text_encoders.")


@final
class Comfyui(Dialect):
    """ComfyUI's containers."""

    name: ClassVar[str] = "comfyui"
    before: ClassVar[tuple[str, ...]] = ("lora-layers", "dotted-kohya", "diffusers")

    def claims(self, file: TensorFile) -> bool:
        return any(key.startswith(CONTAINERS) and split_suffix(key) is not None for key in file.tensors)

    def read(self, file: TensorFile) -> Adapter:
        return read_named(file, self.name)
