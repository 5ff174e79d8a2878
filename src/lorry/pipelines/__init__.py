"""Speak diffusers: the mixins, the components of a pipeline, and the names of its arguments."""

from lorry.pipelines.attach import attach
from lorry.pipelines.mixins import LoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from lorry.pipelines.parts import Strengths
from lorry.pipelines.preparing import prepare
from lorry.pipelines.support import Support, is_supported

__all__ = [
    "LoraLoaderMixin",
    "StableDiffusionXLLoraLoaderMixin",
    "Strengths",
    "Support",
    "attach",
    "is_supported",
    "prepare",
]
