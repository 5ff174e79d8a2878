"""cloneofsimo's original LoRA files as pickles: a bare list of tensors.

    lora.pt                     [up0, down0, up1, down1, …] of the UNet
    lora.text_encoder.pt        the same of the text encoder
    0, 1, 2, 3, …               the keys that such a list is read under

Pattern: even places hold `up`, odd ones `down`; the layers follow the walk of the safetensors files. Nothing says
which classes were walked: the shapes do. The component stands in the file's name, and the shapes bear it out.

Source: cloneofsimo/lora, `lora_diffusion/lora.py` (`save_lora_weight`, `save_all`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, final

from lorry.adapters import Adapter
from lorry.dialects._positions import Factors, read_positions
from lorry.dialects.base import Dialect
from lorry.files import LIST_MARKER, TensorFile


@final
class CloneofsimoPt(Dialect):
    """cloneofsimo's original LoRA files as pickles."""

    name: ClassVar[str] = "cloneofsimo-pt"

    def claims(self, file: TensorFile) -> bool:
        return LIST_MARKER in file.metadata and all(
            key.isdecimal() and tensor.ndim in (2, 4) for key, tensor in file.tensors.items()
        )

    def read(self, file: TensorFile) -> Adapter:
        component = "text_encoder" if _is_square(file) else "unet"
        factors: Factors = {}
        for place in range(len(file.tensors)):
            factors.setdefault((component, place // 2), {})["down" if place % 2 else "up"] = str(place)
        adapter = read_positions(file, self.name, factors, {}, (), [])
        return replace(adapter, metadata={})  # the marker of a list, which no file of names is


def _is_square(file: TensorFile) -> bool:
    """Whether every delta has the same square shape: a text encoder's attention, and no UNet's."""
    ups = {tensor.shape[0] for key, tensor in file.tensors.items() if int(key) % 2 == 0}
    downs = {tensor.shape[1:].numel() for key, tensor in file.tensors.items() if int(key) % 2}
    return len(ups) == 1 and ups == downs
