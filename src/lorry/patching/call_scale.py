"""A strength for one call of a model, taken from the arguments that pipelines pass it in."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch import nn

ARGUMENTS = ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs")
"""The arguments of a denoiser's forward that hold `{"scale": …}`."""


def take_scale(kwargs: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Return the strength that `kwargs` ask for (1.0 when they do not), and `kwargs` without it."""
    for name in ARGUMENTS:
        given = kwargs.get(name)
        if isinstance(given, dict) and "scale" in given:
            rest = {key: value for key, value in given.items() if key != "scale"}
            scale = given["scale"]
            return (1.0 if scale is None else float(scale)), {**kwargs, name: rest or None}
    return 1.0, kwargs


def takes_scale(model: nn.Module) -> bool:
    """Whether the model's forward has an argument that can hold a strength."""
    return any(name in ARGUMENTS for name in inspect.signature(type(model).forward).parameters)


@functools.cache
def scaled_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of a model's class whose forward obeys the strength of the call."""
    forward = cls.forward

    @functools.wraps(forward)
    def forward_with_scale(self: Any, *args: Any, **kwargs: Any) -> Any:
        scale, kwargs = take_scale(kwargs)
        if scale == 1.0:
            return forward(self, *args, **kwargs)
        with self.lorry.scaled(scale):
            return forward(self, *args, **kwargs)

    names = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "lorry_class": cls,
        "forward": forward_with_scale,
        "__reduce_ex__": lambda self, _: (_revived, (cls,), self.__dict__),
    }
    return type(cls.__name__, (cls,), names)


def _revived(cls: type[nn.Module]) -> nn.Module:
    """Make an empty model of `cls` that obeys the strength of a call, for pickle and `copy.deepcopy` to fill."""
    return object.__new__(scaled_class(cls))
