"""cloneofsimo's original LoRA files in safetensors: layers by position.

    unet:0:up
    text_encoder:47:down
    <s1>

Pattern: the component, the layer's position in a walk of the model, and `up` or `down`; a bare key is an embedding.
The metadata has the classes that were walked (`unet`: `["CrossAttention", "GEGLU"]`) and the ranks. Scale 1.

Source: cloneofsimo/lora, `lora_diffusion/lora.py` (`save_safeloras_with_embeds`, `parse_safeloras`).
"""

from __future__ import annotations

import json
import re
from typing import ClassVar, final

from lorry.adapters import Adapter, Embedding
from lorry.dialects._embeddings import read_embedding
from lorry.dialects._positions import Factors, read_positions
from lorry.dialects.base import Dialect
from lorry.errors import FormatError
from lorry.files import TensorFile

_KEY = re.compile(r"(?P<component>unet|text_encoder):(?P<position>\d+):(?P<side>up|down)")
EMBEDDING = "<embed>"
"""What the metadata says under the name of an embedding."""


@final
class Cloneofsimo(Dialect):
    """cloneofsimo's original LoRA files in safetensors."""

    name: ClassVar[str] = "cloneofsimo"

    def claims(self, file: TensorFile) -> bool:
        return any(_KEY.fullmatch(key) for key in file.tensors)

    def read(self, file: TensorFile) -> Adapter:
        factors: Factors = {}
        embeddings: list[Embedding] = []
        unknown: list[str] = []
        for key in sorted(file.tensors):
            found = _KEY.fullmatch(key)
            if found:
                layer = factors.setdefault((found["component"], int(found["position"])), {})
                layer["up" if found["side"] == "up" else "down"] = key
            elif file.metadata.get(key) == EMBEDDING:
                embeddings.append(read_embedding(file, key, key, "text_encoder"))
            else:
                unknown.append(key)
        classes = {name: _classes(file, name) for name in ("unet", "text_encoder") if name in file.metadata}
        return read_positions(file, self.name, factors, classes, embeddings, unknown)


def _classes(file: TensorFile, component: str) -> frozenset[str]:
    try:
        found = json.loads(file.metadata[component])
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file.source}: the metadata `{component}` is no JSON: {error}.") from error
    if not isinstance(found, list):
        raise FormatError(f"{file.source}: the metadata `{component}` is no list of classes.")
    return frozenset(map(str, found))
