"""lorry loads, mixes, fuses and takes off LoRA-type adapters for diffusion pipelines.

Names are imported when they are first used, so that `import lorry` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorry import errors
    from lorry.binding import LoadReport
    from lorry.jobs import convert
    from lorry.pipelines import (
        LoraLoaderMixin,
        StableDiffusionXLLoraLoaderMixin,
        Strengths,
        attach,
        control_net,
        fuse_support,
        is_supported,
        preload,
        prepare,
    )
    from lorry.prompts import LoraTag, Prompt, parse_prompt
    from lorry.training import AdapterConfig, add_adapter, get_adapter_metadata, get_adapter_state_dict

__version__ = "0.1.0"

__all__ = [
    "AdapterConfig",
    "LoadReport",
    "LoraLoaderMixin",
    "LoraTag",
    "Prompt",
    "StableDiffusionXLLoraLoaderMixin",
    "Strengths",
    "__version__",
    "add_adapter",
    "attach",
    "control_net",
    "convert",
    "errors",
    "fuse_support",
    "get_adapter_metadata",
    "get_adapter_state_dict",
    "is_supported",
    "parse_prompt",
    "preload",
    "prepare",
]

_HOMES = {
    "AdapterConfig": "lorry.training",
    "LoadReport": "lorry.binding",
    "LoraLoaderMixin": "lorry.pipelines",
    "LoraTag": "lorry.prompts",
    "Prompt": "lorry.prompts",
    "StableDiffusionXLLoraLoaderMixin": "lorry.pipelines",
    "Strengths": "lorry.pipelines",
    "add_adapter": "lorry.training",
    "attach": "lorry.pipelines",
    "control_net": "lorry.pipelines",
    "convert": "lorry.jobs",
    "fuse_support": "lorry.pipelines",
    "get_adapter_metadata": "lorry.training",
    "get_adapter_state_dict": "lorry.training",
    "is_supported": "lorry.pipelines",
    "parse_prompt": "lorry.prompts",
    "preload": "lorry.pipelines",
    "prepare": "lorry.pipelines",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("lorry.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'lorry' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
