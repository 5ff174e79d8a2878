"""diffusers' group offloading by stream keeps copies of tensors in main memory: what lorry puts in gets one too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from lorry.patching.bare import bare_buffers
from lorry.patching.placement import layer_hooks
from lorry.patching.side_path import BUFFERS, SCALE, SidePath
from lorry.patching.undo import Undo


def keep_in_step(model: nn.Module, undo: Undo) -> None:
    """Give what stands in the side paths of `model` its copies, where its layers are offloaded by stream.

    The copies were made when offloading was put on. At a call, diffusers looks up the copy of each tensor of a layer:
    it would miss new ones, and bring back old strengths.
    """
    if layer_hooks(model) is None:
        return
    for group in groups_by_stream(model):
        copies: dict[Tensor, Tensor] = group.cpu_param_dict
        here = {id(tensor) for tensor in _all_of(group)}
        kept = {tensor: copy for tensor, copy in copies.items() if id(tensor) in here}
        for tensor, name in _ours(group):
            if name == SCALE or tensor not in kept:  # a new strength is written into the tensor that is there
                kept[tensor] = group._to_cpu(tensor, group.low_cpu_mem_usage)
        undo.set_attribute(group, "cpu_param_dict", kept)


def groups_by_stream(model: nn.Module) -> list[Any]:
    """Return the groups of layers of `model` that diffusers offloads by stream."""
    hooks = [
        hook for module in model.modules() for hook in getattr(layer_hooks(module), "hooks", {}).values()
    ]
    groups = {id(group): group for hook in hooks if (group := getattr(hook, "group", None)) is not None}
    return [one for one in groups.values() if one.stream is not None and one.offload_to_disk_path is None]


def _all_of(group: Any) -> Iterator[Tensor]:
    yield from (*group.parameters, *group.buffers)
    for module in group.modules:
        yield from module.parameters()
        yield from module.buffers()


def _ours(group: Any) -> Iterator[tuple[Tensor, str]]:
    for module in group.modules:
        for layer in module.modules():
            names = BUFFERS if isinstance(layer, SidePath) else bare_buffers(layer)
            for name in names:
                if (tensor := layer._buffers[name]) is not None:
                    yield tensor, name
