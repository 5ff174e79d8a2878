"""OpenCLIP's names for the parameters of a text encoder, whose attention has q, k and v in one tensor.

Source: mlfoundations/open_clip, `src/open_clip/transformer.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from lorry.workflows.checkpoints.checkpoint import Place

_LAYER = re.compile(r"(?:transformer\.)?resblocks\.(\d+)\.(.+)\.(weight|bias)")
_IN_PROJECTION = re.compile(r"(?:transformer\.)?resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")
_INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_OUTSIDE = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}


def openclip_places(path: Path, names: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Place]:
    """Return where the parameters of a text encoder lie, under transformers' names.

    Args:
        path: of the file.
        names: {OpenCLIP's name: the file's key}.
        tensors: the file's, for their shapes.
    """
    found: dict[str, Place] = {}
    for name, key in names.items():
        found.update(_places(name, Place(path, (key,)), tensors[key].shape[0] if tensors[key].ndim else 0))
    return found


def _places(name: str, whole: Place, rows: int) -> Iterator[tuple[str, Place]]:
    if name in _OUTSIDE:
        yield _OUTSIDE[name], whole
    elif name == "text_projection":
        yield "text_projection.weight", Place(whole.file, whole.keys, transposed=True)
    elif match := _IN_PROJECTION.fullmatch(name):
        third = rows // 3
        for number, part in enumerate(("q_proj", "k_proj", "v_proj")):
            place = Place(whole.file, whole.keys, ((number * third, (number + 1) * third),))
            yield f"encoder.layers.{match[1]}.self_attn.{part}.{match[2]}", place
    elif (match := _LAYER.fullmatch(name)) and match[2] in _INSIDE:
        yield f"encoder.layers.{match[1]}.{_INSIDE[match[2]]}.{match[3]}", whole
