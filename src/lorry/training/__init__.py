"""Fresh adapters to train, the runs that train them, and what of them is saved.

Names are imported when they are first used, so that the command line can name settings without loading torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorry.training.adapter_config import AdapterConfig
    from lorry.training.fresh import add_adapter
    from lorry.training.loop import Result
    from lorry.training.run import train
    from lorry.training.saving import get_adapter, get_adapter_metadata, get_adapter_state_dict
    from lorry.training.settings import Settings
    from lorry.training.watching import Progress, Silent, Watcher

__all__ = [
    "AdapterConfig",
    "Progress",
    "Result",
    "Settings",
    "Silent",
    "Watcher",
    "add_adapter",
    "get_adapter",
    "get_adapter_metadata",
    "get_adapter_state_dict",
    "train",
]

_HOMES = {
    "AdapterConfig": "adapter_config",
    "Progress": "watching",
    "Result": "loop",
    "Settings": "settings",
    "Silent": "watching",
    "Watcher": "watching",
    "add_adapter": "fresh",
    "get_adapter": "saving",
    "get_adapter_metadata": "saving",
    "get_adapter_state_dict": "saving",
    "train": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lorry.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lorry.training.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
