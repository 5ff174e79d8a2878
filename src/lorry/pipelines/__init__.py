"""Speak diffusers: the mixins, the components of a pipeline, and the names of its arguments."""

from lorry.pipelines.attach import attach
from lorry.pipelines.control_nets import control_net
from lorry.pipelines.fusable import FuseSupport, fuse_support
from lorry.pipelines.mixins import LoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from lorry.pipelines.parts import Strengths
from lorry.pipelines.preloading import preload
from lorry.pipelines.preparing import prepare
from lorry.pipelines.support import Support, is_supported

__all__ = [
    "FuseSupport",
    "LoraLoaderMixin",
    "StableDiffusionXLLoraLoaderMixin",
    "Strengths",
    "Support",
    "attach",
    "control_net",
    "fuse_support",
    "is_supported",
    "preload",
    "prepare",
]
