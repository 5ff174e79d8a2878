"""Adapters follow their layers to another device and into another dtype, as a layer's own parameters do."""

from __future__ import annotations

from collections.abc import Callable
from typing import final
from weakref import WeakMethod

import torch
from torch import Tensor, nn

NOWHERE = ("meta",)
"""Devices to which nothing follows: numbers would be lost there."""


@final
class Home:
    """What a patched module keeps to say that it has moved. It keeps no hold on whom it tells."""

    __slots__ = ("_path", "_tell")

    def __init__(
        self, path: str, tell: WeakMethod[Callable[[str, torch.device, torch.device], None]] | None = None
    ) -> None:
        """Make it for the module at `path`; `tell` is a method that takes (path, device before, device now)."""
        self._path, self._tell = path, tell

    def __reduce__(self) -> tuple[type[Home], tuple[str]]:
        """Copies tell nobody, until the state that they belong to takes them on."""
        return Home, (self._path,)

    @property
    def tells(self) -> bool:
        """Whether it has somebody to tell."""
        return self._tell is not None

    def moved(self, before: torch.device, now: torch.device) -> None:
        """Say that the module was on `before` and is on `now`; where these are one, that it was cast."""
        tell = None if self._tell is None else self._tell()
        if tell is not None:
            tell(self._path, before, now)


def device_of(module: nn.Module) -> torch.device | None:
    """Return where the module's weight is; None where it has none."""
    weight = module._parameters.get("weight")
    return None if weight is None else weight.device


def kept_in(module: nn.Module) -> tuple[torch.device, torch.dtype] | None:
    """Return where the first of the module's own parameters is, and in which dtype; None where it has none."""
    first = next((one for one in module._parameters.values() if one is not None), None)
    return None if first is None else (first.device, first.dtype)


def say_moved(module: nn.Module, before: tuple[torch.device, torch.dtype] | None) -> None:
    """Tell a module's home that its weight was kept in another place or dtype before."""
    home, now = vars(module).get("lorry_home"), kept_in(module)
    if home is not None and before is not None and now is not None and now[0].type not in NOWHERE:
        if now[0] != before[0]:
            home.moved(before[0], now[0])
        if now[1] != before[1]:
            home.moved(now[0], now[0])


@torch.no_grad()
def bring(tensor: Tensor, device: torch.device) -> None:
    """Move a tensor in place: whoever holds it holds the moved one."""
    if tensor.device == device:
        return
    moved = tensor.to(device)
    if torch._has_compatible_shallow_copy_type(tensor, moved):
        tensor.data = moved
    else:
        torch.utils.swap_tensors(tensor, moved)
