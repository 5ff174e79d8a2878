"""diffusers' group offloading by stream keeps copies of tensors in main memory: what lorry puts in gets one too."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from lorry.errors import StateError
from lorry.patching.bare import bare_buffers
from lorry.patching.placement import layer_hooks
from lorry.patching.side_path import BUFFERS, DOWN, SCALE, UP, SidePath
from lorry.patching.undo import Undo


def keep_in_step(
    model: nn.Module,
    undo: Undo,
    *,
    prepared: bool,
    unmoved: bool = False,
    written: Sequence[nn.Parameter] = (),
) -> None:
    """Give what stands in the side paths of `model` its copies, where its layers are offloaded by stream.

    The copies were made when offloading was put on. At a call, diffusers looks up the copy of each tensor of a layer:
    it would miss new ones, and bring back what was written over: strengths, the factors of a prepared model, and
    weights before or after a fuse.

    Args:
        model: with adapters.
        undo: takes it back.
        prepared: whether factors are written over.
        unmoved: whether what stood in the side paths was where it had been put; offloading to disk takes it away.
        written: parameters that have other numbers now.
    """
    if not unmoved:
        check_not_on_disk(model)
    if layer_hooks(model) is None:
        return
    rewritten, others = ((DOWN, UP, SCALE) if prepared else (SCALE,)), {id(one) for one in written}
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for group in groups_by_stream(model):
        # What is added to a block's own parameters is listed there, where it was in place before the groups were made.
        undo.set_attribute(group, "buffers", [one for one in group.buffers if id(one) in own])
        copies: dict[Tensor, Tensor] = group.cpu_param_dict
        here = {id(tensor) for tensor in _all_of(group)}
        kept = {tensor: copy for tensor, copy in copies.items() if id(tensor) in here}
        for tensor, name in _ours(group):
            if name in rewritten or tensor not in kept:
                kept[tensor] = group._to_cpu(tensor, group.low_cpu_mem_usage)
        for tensor in _all_of(group):
            if id(tensor) in others:
                kept[tensor] = group._to_cpu(tensor, group.low_cpu_mem_usage)
        undo.set_attribute(group, "cpu_param_dict", kept)


def check_not_on_disk(model: nn.Module) -> None:
    """Refuse to change what adapters do in a model whose groups of layers are offloaded to files.

    Between calls the numbers in its tensors are not those of the model, and at a call diffusers overwrites every tensor
    that was there when offloading was put on by what its files hold: old strengths, and weights before or after a fuse.

    Raises:
        StateError: it is such a model.
    """
    for registry in filter(None, map(layer_hooks, _where_groups_begin(model))):
        for hook in getattr(registry, "hooks", {}).values():
            if getattr(getattr(hook, "group", None), "offload_to_disk_path", None) is not None:
                raise StateError(
                    f"This {type(model).__name__} is offloaded to disk in groups, whose files keep what adapters do as "
                    "it was then. Take that off, change adapters, and put it on again; or offload to main memory "
                    "(without `offload_to_disk_path`)."
                )


def _where_groups_begin(model: nn.Module) -> Iterator[nn.Module]:
    """Yield modules of which one at least has a hook, where a model is offloaded in groups: they are few."""
    yield model
    for child in filter(None, model._modules.values()):
        yield child
        yield from filter(None, child._modules.values())
    yield from itertools.islice((one for one in model.modules() if isinstance(one, nn.Linear | nn.Conv2d)), 1)


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
