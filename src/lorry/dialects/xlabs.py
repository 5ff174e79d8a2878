"""XLabs' processors on Flux: x-flux, and ByteDance's USO.

    double_blocks.0.processor.qkv_lora1.down.weight
    double_blocks.0.processor.proj_lora2.up.weight
    diffusion_model.single_blocks.37.processor.qkv_lora.down.weight

Pattern: nothing or `diffusion_model.`, a block of Black Forest Labs' names, `processor`, the layer, and `down` or `up`.
In a double block `lora1` is for the image's stream and `lora2` for the text's. In a single block `qkv_lora` is for the
first three parts of the rows of `linear1`, and `proj_lora` for `linear2`. No alpha: scale 1.

Source: XLabs-AI/x-flux, `src/flux/modules/layers.py`.
"""

from __future__ import annotations

from typing import ClassVar, final

from lorry.adapters import Adapter
from lorry.dialects._named import read_named
from lorry.dialects._paths import is_xlabs_key
from lorry.dialects.base import Dialect
from lorry.files import TensorFile


@final
class Xlabs(Dialect):
    """XLabs' processors on Flux."""

    name: ClassVar[str] = "xlabs"
    before: ClassVar[tuple[str, ...]] = (
        "attention-processors",
        "comfyui",
        "lora-layers",
        "dotted-kohya",
        "diffusers",
    )

    def claims(self, file: TensorFile) -> bool:
        return any(map(is_xlabs_key, file.tensors))

    def read(self, file: TensorFile) -> Adapter:
        return read_named(file, self.name)
