"""Slots: room for a fixed rank in every linear layer of a prepared model.

Compiled code depends on the shapes of what it computes with, and on what is there at all. In a prepared model both stay
as they are, whatever is loaded, switched, weighed, disabled or fused: each linear layer has factors of one rank, zeros
where nothing acts, and each layer computes with a `lorry_weight` of its own, which is its parameter's memory or a copy
with deltas added.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

import torch
from torch import Tensor, nn

from lorry.algebra import LowRank
from lorry.binding import weight_shape
from lorry.errors import StateError
from lorry.patching.layer_kinds import PARAMETERS, Plain, find_kind
from lorry.patching.places import Places
from lorry.patching.side_path import SidePath, shares
from lorry.patching.undo import Undo


def fill_slots(
    joined: Mapping[str, Mapping[str, LowRank]], modules: Mapping[str, SidePath], places: Places, room: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return down (room, in) and up (out, room) of each linear layer: its joined factors, and zeros after them.

    No two layers have the same tensor, though idle ones share zeros: compilers take note of which inputs are one.
    """
    filled = {}
    zeros: dict[tuple[torch.device, torch.dtype], Tensor] = {}
    for path, pairs in joined.items():
        device, dtype, *_ = places[path]
        out_features, in_features = _features(modules[path])
        down, up = (_zeros(zeros, room * size, device, dtype) for size in (in_features, out_features))
        if pairs:
            down, up = down.clone(), up.clone()
        down, up = down.view(room, in_features), up.view(out_features, room)
        start = 0
        for pair in pairs.values():
            down[start : start + pair.rank] = pair.down
            up[:, start : start + pair.rank] = pair.up
            start += pair.rank
        filled[path] = (down, up)
    return filled


def _features(module: nn.Module) -> tuple[int, int]:
    shape = weight_shape(module)
    if shape is None or len(shape) != 2:
        raise StateError(f"A {type(module).__name__} has no slot.")
    return shape[0], shape[1]


def _zeros(
    known: dict[tuple[torch.device, torch.dtype], Tensor],
    count: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Return (count,) of zeros, a view of one tensor for all that need such."""
    if (device, dtype) not in known or known[device, dtype].numel() < count:
        known[device, dtype] = torch.zeros(count, device=device, dtype=dtype)
    return known[device, dtype][:count]


def share_parameters(modules: Mapping[str, SidePath], copied: Container[str], undo: Undo) -> None:
    """Let every layer compute with a view of its parameters, but where a copy stands or a parameter is packed."""
    for path, module in modules.items():
        for key in PARAMETERS:
            name, parameter = f"lorry_{key}", module._parameters.get(key)
            standing = module._buffers[name]
            if parameter is None or (standing is not None and path in copied) or shares(module, key):
                continue
            plain = isinstance(find_kind(module, key), Plain)
            undo.set_item(module._buffers, name, parameter.data if plain else None)
