"""Which modules can carry a delta, and of what shape."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

_OTHER_CONVOLUTIONS = (nn.Conv1d, nn.Conv3d)
_READ_ONLY = (NonDynamicallyQuantizableLinear,)
"""`nn.MultiheadAttention.out_proj`: its weight is read and its forward never called, so a side path would not act."""


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
    if isinstance(module, nn.Linear):
        return (module.out_features, module.in_features)
    if isinstance(module, nn.Conv2d):
        return (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    weight = module._parameters.get("weight")
    if weight is not None and (weight.ndim == 1 or isinstance(module, _OTHER_CONVOLUTIONS)):
        return tuple(weight.shape)
    return None
