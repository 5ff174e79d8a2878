"""Slots: room for a fixed rank in every linear layer of a prepared model.

Compiled code depends on the shapes of what it computes with, and on what is there at all. In a prepared model both stay
as they are, whatever is loaded, switched, weighed, disabled or fused: each linear layer has factors of one rank, zeros
where nothing acts, and each layer computes with a `lorry_weight` of its own, which is its parameter's memory or a copy
with deltas added. The factors are written in place: they keep their addresses too.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

import torch
from torch import Tensor, nn

from lorry.algebra import LowRank
from lorry.binding import weight_shape
from lorry.errors import StateError
from lorry.patching.layer_kinds import PARAMETERS, Plain, find_kind
from lorry.patching.memory import Block, padded
from lorry.patching.modes import without_modes
from lorry.patching.patches import mark_empty, mark_filled
from lorry.patching.places import Places
from lorry.patching.side_path import SidePath, shares
from lorry.patching.undo import Undo

Slots = Mapping[str, tuple[Tensor, Tensor]]
"""Down (room, in) and up (out, room) of each linear layer."""
Joined = Mapping[str, Mapping[str, LowRank]]
"""Factors by module and by adapter."""


def empty_slots(paths: Iterable[str], modules: Mapping[str, SidePath], places: Places, room: int) -> Slots:
    """Return slots of zeros, in one block of memory a device."""
    shapes = {path: _shapes(modules[path], room) for path in paths}
    sizes: dict[torch.device, int] = {}
    for path, both in shapes.items():
        place = places[path]
        here = sum(padded(shape.numel() * place.dtype.itemsize) for shape in both)
        sizes[place.device] = sizes.get(place.device, 0) + here
    blocks = {device: Block(nbytes, device) for device, nbytes in sizes.items()}
    slots = {}
    for path, (down, up) in shapes.items():
        place = places[path]
        block = blocks[place.device]
        slots[path] = (block.take(down, place.dtype).zero_(), block.take(up, place.dtype).zero_())
    return slots


@without_modes()
def fill_slots(slots: Slots, before: Joined, now: Joined, undo: Undo) -> None:
    """Write joined factors into the slots, and zeros after them, in place of those of `before`.

    The slots stay where they are: a CUDA graph reads the addresses that it was recorded with.
    """
    undo.on_failure(lambda: _write(slots, now, before))
    _write(slots, before, now)


def _write(slots: Slots, before: Joined, now: Joined) -> None:
    for path, (down, up) in slots.items():
        pairs = now.get(path, {})
        if not pairs and not before.get(path):
            continue
        start = 0
        for pair in pairs.values():
            down[start : start + pair.rank] = pair.down
            up[:, start : start + pair.rank] = pair.up
            start += pair.rank
        down[start:] = 0
        up[:, start:] = 0


def _shapes(module: nn.Module, room: int) -> tuple[torch.Size, torch.Size]:
    shape = weight_shape(module)
    if shape is None or len(shape) != 2:
        raise StateError(f"A {type(module).__name__} has no slot.")
    return torch.Size((room, shape[1])), torch.Size((shape[0], room))


@without_modes()
def share_parameters(modules: Mapping[str, SidePath], copied: Container[str], undo: Undo) -> None:
    """Let every layer compute with a view of its parameters, but where a copy stands or a parameter is packed."""
    shared: dict[str, list[SidePath]] = {}
    for path, module in modules.items():
        for key in PARAMETERS:
            name, parameter = f"lorry_{key}", module._parameters.get(key)
            standing = module._buffers[name]
            if parameter is None or (standing is not None and path in copied) or shares(module, key):
                continue
            plain = isinstance(find_kind(module, key), Plain)
            undo.set_item(module._buffers, name, parameter.data if plain else None)
            if plain:
                shared.setdefault(name, []).append(module)
            elif standing is not None:  # offloaded since it was shared
                mark_empty([module], [name], undo)
    for name, filled in shared.items():
        mark_filled(filled, [name], undo)
