"""Give the loader API to a pipeline object that already exists."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

from lorry.errors import StateError
from lorry.pipelines.components import components_of
from lorry.pipelines.mixins import LoraLoaderMixin, StableDiffusionXLLoraLoaderMixin

Pipeline = TypeVar("Pipeline")


def attach(pipeline: Pipeline) -> Pipeline:
    """Put lorry's loader in front of the class of `pipeline`, in place.

    Its class keeps its name, and `isinstance` holds as before; its models are untouched.

    Args:
        pipeline: any diffusers pipeline with a denoiser or a text encoder.

    Returns:
        The same object.

    Raises:
        StateError: the pipeline has nothing that adapters go into.
    """
    if isinstance(pipeline, LoraLoaderMixin):
        return pipeline
    places = components_of(pipeline)
    if not any(model is not None for model in places.values()):
        raise StateError(
            f"{type(pipeline).__name__} has no unet, transformer or text encoder that adapters could go into."
        )
    mixin = (
        StableDiffusionXLLoraLoaderMixin if {"unet", "text_encoder_2"} <= places.keys() else LoraLoaderMixin
    )
    pipeline.__class__ = _with_loader(type(pipeline), mixin)
    return pipeline


@functools.cache
def _with_loader(cls: type[Any], mixin: type[LoraLoaderMixin]) -> type[Any]:
    names = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        # by its name, pickle would find the class without the loader
        "__reduce_ex__": lambda self, _protocol: (_revived, (cls, mixin), vars(self)),
    }
    return type(cls.__name__, (mixin, cls), names)


def _revived(cls: type[Any], mixin: type[LoraLoaderMixin]) -> Any:
    """Make an empty pipeline with the loader, for pickle and `copy.deepcopy` to fill."""
    return object.__new__(_with_loader(cls, mixin))
