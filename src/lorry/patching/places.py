"""Where each module computes, found out for a whole model at once and checked again cheaply."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import repeat
from operator import attrgetter, is_
from typing import Any, NamedTuple, final

import torch
from torch import nn

from lorry.patching.placement import layer_hooks, module_device, module_dtype, weight_of


class Place(NamedTuple):
    """Where and in what a module computes, and what of the module that was read from."""

    device: torch.device
    dtype: torch.dtype
    hook: object
    """accelerate's, which may keep the weight elsewhere."""
    weight_device: torch.device
    weight_dtype: torch.dtype


@final
class Places:
    """The places of some modules of a model."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        """Find them.

        Raises:
            StateError: a module has no weight.
        """
        known: dict[Any, Place] = {}
        self._of: dict[str, Place] = {}
        """Modules that are alike in all that says where they compute have one."""
        for path, module in modules.items():
            attributes, weight = vars(module), weight_of(module)
            hook, declared = attributes.get("_hf_hook"), attributes.get("compute_dtype")
            alike = (type(module), hook, layer_hooks(module), declared, weight.device, weight.dtype)
            if alike not in known:
                place = module_device(module), module_dtype(module)
                known[alike] = Place(*place, hook, weight.device, weight.dtype)
            self._of[path] = known[alike]
        places = self._of.values()
        self._attributes = [*map(vars, modules.values())]
        self._parameters = [one["_parameters"] for one in self._attributes]
        self._hooks, self._dtypes = [one.hook for one in places], [one.weight_dtype for one in places]
        self._devices = [one.weight_device for one in places]

    def __getitem__(self, path: str) -> Place:
        return self._of[path]

    def are_of(self, paths: Collection[str]) -> bool:
        """Whether these are the places of the modules at just these paths."""
        return self._of.keys() == paths

    def hold(self) -> bool:
        """Whether the modules still compute where they did when the places were found."""
        weights = [*map(dict.get, self._parameters, repeat("weight"))]
        hooks = map(dict.get, self._attributes, repeat("_hf_hook"))
        return (
            all(map(is_, hooks, self._hooks))
            and not any(map(is_, weights, repeat(None)))
            and all(map(is_, map(attrgetter("dtype"), weights), self._dtypes))
            and [*map(attrgetter("device"), weights)] == self._devices
        )
