"""Where a module computes: the device and dtype that an adapter's tensors are needed in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lorry.algebra import Delta
from lorry.errors import StateError
from lorry.patching.layer_kinds import COMPUTE_DTYPES
from lorry.patching.memory import copied


def weight_of(module: nn.Module) -> nn.Parameter:
    """Return the module's own weight.

    Raises:
        StateError: it has none.
    """
    weight = module._parameters.get("weight")
    if weight is None:
        raise StateError(f"A {type(module).__name__} without a weight cannot carry an adapter.")
    return weight


def module_device(module: nn.Module) -> torch.device:
    """Return the device that the module computes on, which is not its weight's while that is offloaded."""
    return device_with(module, module._parameters.get("weight"))


def device_with(module: nn.Module, parameter: Tensor | None) -> torch.device:
    """Return the device that a module computes on with one of its parameters.

    Raises:
        StateError: no hook says it, and there is no such parameter.
    """
    hook = vars(module).get("_hf_hook")
    device = getattr(hook, "execution_device", None)
    if device is not None:
        return as_tensors_say(torch.device(device))
    here = weight_of(module) if parameter is None else parameter
    return torch.device("cpu") if here.is_meta else here.device


def as_tensors_say(device: torch.device) -> torch.device:
    """Return a device as the tensors on it name it: with a number, which "cuda" lacks, but on the CPU.

    Only devices that are named alike compare equal.
    """
    if (device.index is None) == (device.type in ("cpu", "meta")):
        return device
    return torch.empty(0, device=device).device


def module_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype that the module computes in, which is not its weight's where that is quantized."""
    declared = [*_cast_to(module), getattr(module, "compute_dtype", None)]
    own = weight_of(module).dtype
    candidates = (*declared[:-1], own, declared[-1])
    return next((dtype for dtype in candidates if dtype in COMPUTE_DTYPES), torch.float32)


def casts_at_calls(module: nn.Module) -> bool:
    """Whether diffusers' layerwise casting changes the module's dtype for each call."""
    return any(dtype is not None for dtype in _cast_to(module))


def _cast_to(module: nn.Module) -> list[torch.dtype | None]:
    hooks = getattr(layer_hooks(module), "hooks", {}).values()
    return [getattr(hook, "compute_dtype", None) for hook in hooks]


def layer_hooks(module: nn.Module) -> object | None:
    """Return the registry of the hooks that diffusers has put on the module, or None."""
    return vars(module).get("_diffusers_hook")


@torch.inference_mode(False)
@torch.no_grad()
def own_copy(deltas: Mapping[str, Delta], devices: Mapping[str, torch.device]) -> dict[str, Delta]:
    """Copy deltas to their modules' devices, in the dtype that they have, all of a device into one block of memory.

    The copies share nothing with the file or the dictionary that they came from.

    Args:
        deltas: {module path: delta}.
        devices: {module path: device to copy to}.
    """
    tensors: dict[torch.device, list[Tensor]] = {}
    for path, delta in deltas.items():
        tensors.setdefault(devices[path], []).extend(delta.tensors().values())
    copies = {device: iter(copied(found, device)) for device, found in tensors.items()}
    return {
        path: delta.with_tensors({name: next(copies[devices[path]]) for name in delta.tensors()})
        for path, delta in deltas.items()
    }
