"""Where a module computes: the device and dtype that an adapter's tensors are needed in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lorry.algebra import Delta
from lorry.errors import StateError
from lorry.patching.layer_kinds import COMPUTE_DTYPES


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
    hook = vars(module).get("_hf_hook")
    device = getattr(hook, "execution_device", None)
    if device is not None:
        return torch.device(device)
    weight = weight_of(module)
    return torch.device("cpu") if weight.device.type == "meta" else weight.device


def module_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype that the module computes in, which is not its weight's where that is quantized."""
    hooks = getattr(layer_hooks(module), "hooks", {}).values()  # diffusers' layerwise casting is one
    declared = [getattr(one, "compute_dtype", None) for one in (*hooks, module)]
    own = weight_of(module).dtype
    candidates = (*declared[:-1], own, declared[-1])
    return next((dtype for dtype in candidates if dtype in COMPUTE_DTYPES), torch.float32)


def layer_hooks(module: nn.Module) -> object | None:
    """Return the registry of the hooks that diffusers has put on the module, or None."""
    return vars(module).get("_diffusers_hook")


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of memory behind `tensors`, shared memory counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@torch.inference_mode(False)
@torch.no_grad()
def own_copy(deltas: Mapping[str, Delta], devices: Mapping[str, torch.device]) -> dict[str, Delta]:
    """Copy deltas to their modules' devices, in the dtype that they have, all of a device into one block of memory.

    One block makes one allocation and one run of copies, whatever the number of tensors; and the copies share nothing
    with the file or the dictionary that they came from.

    Args:
        deltas: {module path: delta}.
        devices: {module path: device to copy to}.
    """
    blocks = {
        device: _Block(
            [
                t
                for path, delta in deltas.items()
                if devices[path] == device
                for t in delta.tensors().values()
            ],
            device,
        )
        for device in dict.fromkeys(devices.values())
    }
    return {
        path: delta.with_tensors({name: blocks[devices[path]].take(t) for name, t in delta.tensors().items()})
        for path, delta in deltas.items()
    }


class _Block:
    """Memory for many tensors, handed out piece by piece."""

    ALIGNMENT = 64

    def __init__(self, tensors: Iterable[Tensor], device: torch.device) -> None:
        size = sum(self._padded(tensor.nbytes) for tensor in tensors)
        self._memory = torch.empty(size, dtype=torch.uint8, device=device)
        self._offset = 0

    def take(self, tensor: Tensor) -> Tensor:
        piece = (
            self._memory[self._offset : self._offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        )
        self._offset += self._padded(tensor.nbytes)
        return piece.copy_(tensor.detach())

    def _padded(self, nbytes: int) -> int:
        return -(-nbytes // self.ALIGNMENT) * self.ALIGNMENT
