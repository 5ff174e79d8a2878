"""Where each module computes, found out for a whole model at once and checked again cheaply."""

from __future__ import annotations

from collections.abc import Mapping
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
        self._attributes = [*map(vars, modules.values())]

    def __getitem__(self, path: str) -> Place:
        return self._of[path]

    def are_of(self, modules: Mapping[str, nn.Module]) -> bool:
        """Whether these are the places of just these modules, and still hold."""
        return self._of.keys() == modules.keys() and self.hold()

    def hold(self) -> bool:
        """Whether the modules still compute where they did when the places were found."""
        for place, attributes in zip(self._of.values(), self._attributes, strict=True):
            weight = attributes["_parameters"].get("weight")
            if weight is None or attributes.get("_hf_hook") is not place.hook:
                return False
            if weight.dtype is not place.weight_dtype or weight.device != place.weight_device:
                return False
        return True
