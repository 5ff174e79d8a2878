"""Put the side path into a module, and take it out again without a trace."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import cast

from torch import nn

from lorry.errors import StateError
from lorry.patching.classes import change_classes, forget_tensors
from lorry.patching.side_path import BUFFERS, FACTORS, SidePath, side_path_class
from lorry.patching.undo import Undo

EMPTY = dict.fromkeys(BUFFERS)
"""The buffers of a module where nothing acts."""
KNOWN = "_non_persistent_buffers_set"


def patch(modules: Mapping[str, nn.Module], undo: Undo) -> dict[str, SidePath]:
    """Give modules, by path, their side paths, empty.

    Raises:
        StateError: one has it of another model, or its forward is another program's.
    """
    for path, module in modules.items():
        if isinstance(module, SidePath):
            raise patched_already(path)
    layers = [*modules.values()]
    reached = change_classes(layers, [side_path_class(type(layer)) for layer in layers], undo)
    for path, reaches in zip(modules, reached, strict=True):
        if not reaches:
            raise StateError(
                f"`{path}`: another program has replaced this layer's forward (trainers' networks do), so that an "
                "adapter would do nothing here. Take that program's network off first."
            )
    attributes = [*map(vars, layers)]
    undo.set_in_all(attributes, "_buffers", [{**one["_buffers"], **EMPTY} for one in attributes])
    return cast(dict[str, SidePath], dict(modules))


def patched_already(path: str) -> StateError:
    """Make the error for a module that has been patched for another model."""
    return StateError(
        f"`{path}` carries adapters already, which were loaded on a model that this one is a part of."
    )


def mark_filled(modules: Collection[nn.Module], names: Sequence[str], undo: Undo) -> None:
    """Let nn.Module know that buffers of these names, which are filled together, are so: they are not persistent."""
    undo.add_to_sets(map(itemgetter(KNOWN), map(vars, modules)), names)


def mark_empty(modules: Collection[nn.Module], names: Sequence[str], undo: Undo) -> None:
    """Let nn.Module know of these names, which are emptied together, no more.

    accelerate's offloading looks up every name that it knows, and remembers the devices of what it saw filled.
    """
    attributes = [*map(vars, modules)]
    undo.discard_from_sets(map(itemgetter(KNOWN), attributes), names)
    for module, holder in zip(modules, attributes, strict=True):
        if "_hf_hook" in holder:
            forget_tensors(module, names, undo)


def unpatch(modules: Sequence[SidePath], undo: Undo) -> None:
    """Make modules what they were before `patch`."""
    take_out(modules, (FACTORS, *([name] for name in BUFFERS if name not in FACTORS)), undo)
    for module in modules:
        check_own_class(module, side_path_class(module.lorry_class))
    change_classes(modules, [module.lorry_class for module in modules], undo)


def take_out(modules: Collection[nn.Module], groups: Iterable[Sequence[str]], undo: Undo) -> None:
    """Take buffers of lorry's out of modules, and their homes.

    Args:
        modules: that have them.
        groups: the names of the buffers, those together that are filled and emptied together.
        undo: takes it back.
    """
    groups = [*groups]
    names = {*chain.from_iterable(groups)}
    attributes = [*map(vars, modules)]
    own = [
        # most layers have no buffers but lorry's, of which all are there
        {} if len(here) == len(names) else {n: one for n, one in here.items() if n not in names}
        for here in map(itemgetter("_buffers"), attributes)
    ]
    undo.set_in_all(attributes, "_buffers", own)
    for group in groups:
        mark_empty(modules, group, undo)
    undo.delete_in_all(attributes, "lorry_home")


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
