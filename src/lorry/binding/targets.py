"""Which modules can carry a delta, and of what shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast, final

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

_OTHER_CONVOLUTIONS = (nn.Conv1d, nn.Conv3d)
_READ_ONLY = (NonDynamicallyQuantizableLinear,)
"""`nn.MultiheadAttention.out_proj`: its weight is read and its forward never called, so a side path would not act."""
_WHOLE = (nn.MultiheadAttention,)
"""Modules whose parameters are read by other code than their own forward."""

INPUTS = ("conv_in", "x_embedder", "img_in", "patch_embedding", "patch_embed.proj", "pos_embed.proj")
"""The first layers of denoisers, whose number of channels differs between variants of one base: an inpainting model and
Flux Fill take a picture beside the latents, and Flux's control LoRAs make a model take one."""


def weight_shape(module: nn.Module) -> tuple[int, ...] | None:
    """Return the shape of the weight a delta on `module` must have, or None where it cannot carry one.

    The module's own description counts, not its parameter: quantized layers keep theirs packed. Norm layers, of
    whatever class, are known by a weight of one axis.
    """
    if isinstance(module, _READ_ONLY):
        return None
    if isinstance(module, BareParameter):
        return tuple(module.weight.shape)
    if isinstance(module, nn.Linear):
        return (module.out_features, module.in_features)
    if isinstance(module, nn.Conv2d):
        return (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    weight = module._parameters.get("weight")
    if weight is not None and (weight.ndim == 1 or isinstance(module, _OTHER_CONVOLUTIONS)):
        return tuple(weight.shape)
    return None


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
    return {name: BareParameter(parameter) for name, parameter in _bare(model)}


def carriers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a model by path, and after them what stands for its bare parameters, by name."""
    return {**{path: module for path, module in model.named_modules() if path}, **bare_parameters(model)}


def bare_names(module: nn.Module) -> list[str]:
    """Return the names of a module's own parameters that are bare: those of a layer are its weight and its bias."""
    if weight_shape(module) is not None or isinstance(module, _WHOLE):
        return []
    own = module._parameters.items()
    return [name for name, one in own if one is not None and one.ndim and name not in ("weight", "bias")]


def _bare(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for path, module in model.named_modules():
        for name in bare_names(module):
            yield f"{path}.{name}" if path else name, cast(nn.Parameter, module._parameters[name])
