"""Put the side path into a module, and take it out again without a trace."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

from torch import nn

from lorry.errors import StateError
from lorry.patching.classes import change_class, forget_tensors
from lorry.patching.side_path import BUFFERS, SidePath, side_path_class
from lorry.patching.undo import Undo

EMPTY = dict.fromkeys(BUFFERS)
"""The buffers of a module where nothing acts."""


def patch(path: str, module: nn.Module, undo: Undo) -> SidePath:
    """Give a module its side path, empty.

    Raises:
        StateError: it has one of another model, or its forward is another program's.
    """
    if isinstance(module, SidePath):
        raise patched_already(path)
    if not change_class(module, side_path_class(type(module)), undo):
        raise StateError(
            f"`{path}`: another program has replaced this layer's forward (trainers' networks do), so that an adapter "
            "would do nothing here. Take that program's network off first."
        )
    attributes = vars(module)
    undo.set_item(attributes, "_buffers", {**module._buffers, **EMPTY})
    return cast(SidePath, module)


def patched_already(path: str) -> StateError:
    """Make the error for a module that has been patched for another model."""
    return StateError(
        f"`{path}` carries adapters already, which were loaded on a model that this one is a part of."
    )


def mark_filled(module: nn.Module, undo: Undo, names: Collection[str] = EMPTY.keys()) -> None:
    """Let nn.Module know which of its buffers of lorry's are filled: those, and no others, are not persistent.

    accelerate's offloading looks up every name that it finds there, and remembers the devices of what it saw filled.
    """
    buffers, known = module._buffers, module._non_persistent_buffers_set
    filled = {name for name in names if buffers[name] is not None}
    if filled == known.intersection(names):
        return
    undo.set_item(vars(module), "_non_persistent_buffers_set", known.difference(names) | filled)
    forget_tensors(module, set(names) - filled, undo)


def unpatch(module: SidePath, undo: Undo) -> None:
    """Make a module what it was before `patch`."""
    take_out(module, BUFFERS, undo)
    check_own_class(module, side_path_class(module.lorry_class))
    change_class(module, module.lorry_class, undo)


def take_out(module: nn.Module, names: Collection[str], undo: Undo) -> None:
    """Take buffers of lorry's out of a module, and its home."""
    attributes = vars(module)
    own = {name: buffer for name, buffer in module._buffers.items() if name not in names}
    undo.set_item(attributes, "_buffers", own)
    known = module._non_persistent_buffers_set
    undo.set_item(attributes, "_non_persistent_buffers_set", known.difference(names))
    forget_tensors(module, names, undo)
    if "lorry_home" in attributes:
        undo.delete_item(attributes, "lorry_home")


def check_own_class(module: nn.Module, given: type[nn.Module]) -> None:
    """Check that a module still has the class that lorry gave it.

    Raises:
        StateError: it has another, of which its own cannot be told.
    """
    if type(module) is not given:
        raise StateError(
            f"A {type(module).__name__} of this model has got another class since adapters were loaded (sharding does "
            "that), and cannot be given its own back. Load adapters after sharding."
        )
