"""Give a live module a subclass of its own class, and its own class back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import MethodType
from typing import Any

from torch import nn

from lorry.patching.undo import Undo

HOLDERS = ("forward", "_old_forward", "_diffusers_hook")
"""Attributes of a module that may hold its `forward`."""


def change_classes(modules: Sequence[nn.Module], new: Sequence[type[nn.Module]], undo: Undo) -> list[bool]:
    """Make each of `modules` an instance of its class of `new`, also for wrappers that took hold of its `forward`.

    accelerate and diffusers put a function of theirs in place of `module.forward` and keep the bound method that was
    there; it is pointed at the new class's, and the wrappers are otherwise left alone.

    Returns:
        Of each module, whether its calls reach the new class's forward.
    """
    old = [*map(type, modules)]
    undo.set_classes(modules, new)
    return [
        _reaches(module, before, now, undo) for module, before, now in zip(modules, old, new, strict=True)
    ]


def _reaches(module: nn.Module, old: type[nn.Module], new: type[nn.Module], undo: Undo) -> bool:
    """Point wrappers that hold the old class's forward at the new one's; return whether calls reach that."""
    if vars(module).keys().isdisjoint(HOLDERS) and module._modules.keys().isdisjoint(HOLDERS):
        return True
    reaches = "forward" not in vars(module)
    for holder, name in _held_forwards(module):
        held = getattr(holder, name)
        if isinstance(held, MethodType) and held.__self__ is module and held.__func__ is old.forward:
            undo.set_attribute(holder, name, MethodType(new.forward, module))
            reaches = True
    return reaches


def forget_tensors(module: nn.Module, names: Iterable[str], undo: Undo) -> None:
    """Take tensors that a module no longer has out of what accelerate's offloading hooks remember of it."""
    hook = vars(module).get("_hf_hook")
    if hook is None:
        return
    for one in (hook, *getattr(hook, "hooks", ())):
        devices = getattr(one, "original_devices", {})
        for name in set(names) & devices.keys():
            undo.delete_item(devices, name)


def _held_forwards(module: nn.Module) -> Iterator[tuple[Any, str]]:
    for name in ("forward", "_old_forward"):
        if name in vars(module):
            yield module, name
    registry = vars(module).get("_diffusers_hook") or module._modules.get("_diffusers_hook")
    for reference in getattr(registry, "_fn_refs", ()):
        for name in ("forward", "original_forward"):
            if hasattr(reference, name):
                yield reference, name
