"""Which modules can carry a delta, and of what shape."""

from __future__ import annotations

from torch import nn

CARRIERS = (nn.Linear, nn.Conv2d)
"""The module classes, subclasses included, that a delta can be put on."""


def weight_shape(module: nn.Module) -> tuple[int, ...] | None:
    """Return the shape of the weight a delta on `module` must have, or None where it cannot carry one.

    The module's own description counts, not its parameter: quantized layers keep theirs packed.
    """
    if isinstance(module, nn.Linear):
        return (module.out_features, module.in_features)
    if isinstance(module, nn.Conv2d):
        return (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    return None
