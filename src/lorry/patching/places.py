"""Where each module computes, found out for a whole model at once and checked again cheaply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, final

import torch
from torch import nn

from lorry.patching.placement import layer_hooks, module_device, module_dtype, weight_of


class Place(NamedTuple):
    """Where and in what one module computes, and what of the module that was read from."""

    device: torch.device
    dtype: torch.dtype
    attributes: dict[str, Any]
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
        known: dict[Any, tuple[torch.device, torch.dtype]] = {}
        self._of: dict[str, Place] = {}
        for path, module in modules.items():
            attributes, weight = vars(module), weight_of(module)
            hook, device, dtype = attributes.get("_hf_hook"), weight.device, weight.dtype
            declared = attributes.get("compute_dtype", getattr(type(module), "compute_dtype", None))
            alike = (hook, layer_hooks(module), declared, device, dtype)
            if alike not in known:
                known[alike] = module_device(module), module_dtype(module)
            self._of[path] = Place(*known[alike], attributes, hook, device, dtype)

    def __getitem__(self, path: str) -> Place:
        return self._of[path]

    def are_of(self, modules: Mapping[str, nn.Module]) -> bool:
        """Whether these are the places of just these modules, and still hold."""
        return self._of.keys() == modules.keys() and self.hold()

    def hold(self) -> bool:
        """Whether the modules still compute where they did when the places were found."""
        for _, _, attributes, hook, device, dtype in self._of.values():
            weight = attributes["_parameters"].get("weight")
            if weight is None or attributes.get("_hf_hook") is not hook:
                return False
            if weight.device != device or weight.dtype is not dtype:
                return False
        return True
