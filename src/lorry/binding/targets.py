"""Which modules can carry a delta, and of what shape."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from operator import attrgetter
from typing import Any, cast, final

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

_OTHER_CONVOLUTIONS = (nn.Conv1d, nn.Conv3d)
_READ_ONLY = (NonDynamicallyQuantizableLinear,)
"""`nn.MultiheadAttention.out_proj`: its weight is read and its forward never called, so a side path would not act."""
_OF_LAYERS = {"weight", "bias"}
_WHOLE = (nn.MultiheadAttention,)
"""Modules whose parameters are read by other code than their own forward."""

INPUTS = ("conv_in", "x_embedder", "img_in", "patch_embedding", "patch_embed.proj", "pos_embed.proj")
"""The first layers of denoisers, whose number of channels differs between variants of one base: an inpainting model and
Flux Fill take a picture beside the latents, and Flux's control LoRAs make a model take one."""


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules inside a model by path, in the order and under the names of `nn.Module.named_modules`.

    That one's generators, one inside the other, take five times as long.
    """
    found: dict[str, nn.Module] = {}
    _gather("", model, found, {model})
    return found


def _gather(start: str, module: nn.Module, found: dict[str, nn.Module], seen: set[nn.Module]) -> None:
    for name, child in module._modules.items():
        if child is not None and child not in seen:
            seen.add(child)
            found[start + name] = child
            if child._modules:
                _gather(f"{start}{name}.", child, found, seen)


def modules_at(model: nn.Module, paths: Iterable[str]) -> dict[str, nn.Module]:
    """Return the modules of a model that stand at these paths; there may be none at some of them."""
    return layers_at(model, paths)[0]


def layers_at(model: nn.Module, paths: Iterable[str]) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Return the modules that stand at these paths, and the ones that these are in, each by its path."""
    found: dict[str, nn.Module] = {}
    blocks: dict[str, nn.Module | None] = {"": model}
    for path in paths:
        above, _, name = path.rpartition(".")
        if above not in blocks:
            blocks[above] = _module_at(model, above)
        block = blocks[above]
        module = None if block is None else block._modules.get(name)
        if module is not None:
            found[path] = module
    return found, {path: block for path, block in blocks.items() if block is not None}


def _module_at(model: nn.Module, path: str) -> nn.Module | None:
    module: nn.Module | None = model
    for name in path.split("."):
        module = None if module is None else module._modules.get(name)
    return module


def weight_shape(module: nn.Module) -> tuple[int, ...] | None:
    """Return the shape of the weight a delta on `module` must have, or None where it cannot carry one.

    The module's own description counts, not its parameter: quantized layers keep theirs packed. Norm layers, of
    whatever class, are known by a weight of one axis.
    """
    return _shape_of(type(module))(module)


@functools.cache
def _shape_of(cls: type[nn.Module]) -> Callable[[Any], tuple[int, ...] | None]:
    """Return what finds that shape in a module of a class: a model has a thousand modules of a few classes."""
    if issubclass(cls, _READ_ONLY):
        return lambda _: None
    if issubclass(cls, nn.Linear):
        return attrgetter("out_features", "in_features")
    if issubclass(cls, nn.Conv2d):
        return _of_convolution
    if issubclass(cls, nn.Embedding):
        return _of_embedding
    return _of_weight if issubclass(cls, (BareParameter, *_OTHER_CONVOLUTIONS)) else _of_norm


def _of_convolution(module: nn.Conv2d) -> tuple[int, ...]:
    return (module.out_channels, module.in_channels // module.groups, *module.kernel_size)


def _of_embedding(module: nn.Embedding) -> tuple[int, ...] | None:
    """The shape of an embedding that is not packed: the forward of one that is would not take another weight."""
    shape, weight = (module.num_embeddings, module.embedding_dim), module.weight
    return shape if weight.is_floating_point() and tuple(weight.shape) == shape else None


def _of_weight(module: nn.Module) -> tuple[int, ...] | None:
    weight = module._parameters.get("weight")
    return None if weight is None else tuple(weight.shape)


def _of_norm(module: nn.Module) -> tuple[int, ...] | None:
    weight = module._parameters.get("weight")
    return tuple(weight.shape) if weight is not None and weight.ndim == 1 else None


@final
class BareParameter(nn.Module):
    """Stands for a parameter that is a block's own and no layer's weight, as if it were a layer with that weight.

    Wan's `blocks.0.scale_shift_table` is one. It is no part of the model, and holds the parameter that is there when it
    is made.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight


def bare_parameters(model: nn.Module) -> dict[str, BareParameter]:
    """Return what stands for each parameter of a model that is no layer's weight or bias, by the parameter's name."""
    return _stand_ins(model, named_modules(model))


def carriers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a model by path, and after them what stands for its bare parameters, by name."""
    modules = named_modules(model)
    modules.update(_stand_ins(model, modules))
    return modules


def bare_names(module: nn.Module) -> list[str]:
    """Return the names of a module's own parameters that are bare: those of a layer are its weight and its bias."""
    own = module._parameters.items()
    names = [name for name, one in own if name not in _OF_LAYERS and one is not None and one.ndim]
    return names if names and weight_shape(module) is None and not isinstance(module, _WHOLE) else []


def _stand_ins(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, BareParameter]:
    return {
        f"{path}.{name}" if path else name: BareParameter(cast(nn.Parameter, module._parameters[name]))
        for path, module in chain([("", model)], modules.items())
        if not _OF_LAYERS.issuperset(module._parameters)
        for name in bare_names(module)
    }
