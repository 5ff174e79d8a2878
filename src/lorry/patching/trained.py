"""Adapters in training: their factors are parameters of the modules where they act."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lorry.algebra import Delta
from lorry.errors import StateError
from lorry.patching.side_path import SidePath, trained_names
from lorry.patching.strength import Strength
from lorry.patching.undo import Undo


def place_trained(
    path: str, module: SidePath, acting: Mapping[str, tuple[Delta, Strength]], undo: Undo
) -> None:
    """Give a module the parameters of these adapters, and of no others.

    Raises:
        StateError: one is of a family that cannot be trained.
    """
    if not acting and not module.lorry_trained:
        return
    for name in set(module.lorry_trained) - acting.keys():
        for key in trained_names(name):
            undo.delete_item(module._parameters if key in module._parameters else module._buffers, key)
    for name, (delta, strength) in acting.items():
        pair = delta.low_rank()
        if pair is None:
            raise StateError(f"`{path}`: {delta.family} cannot be trained yet.")
        down, up, scale = trained_names(name)
        undo.set_item(module._parameters, down, pair.down)
        undo.set_item(module._parameters, up, pair.up)
        value = pair.scale * strength.at(path)
        vector = torch.full((pair.rank,), value, dtype=torch.float32, device=pair.down.device)
        undo.set_item(module._buffers, scale, vector)
    if acting:
        undo.set_item(vars(module), "lorry_trained", tuple(acting))
    else:
        undo.delete_item(vars(module), "lorry_trained")
