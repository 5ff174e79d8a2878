"""kohya's scripts as functions, from a checkout that the caller has: nothing of them is part of this repository.

The modules that they import and these functions do not need (training utilities, model loaders) are stood in for.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

STAND_INS = (
    "library",
    "library.train_util",
    "library.model_util",
    "library.sai_model_spec",
    "library.sdxl_model_util",
    "library.sdxl_original_unet",
    "library.utils",
    "lora",
)


def kohya_module(checkout: Path, name: str) -> ModuleType:
    """Import `networks/<name>.py` of a checkout of sd-scripts."""
    with _stood_in(checkout):
        return importlib.import_module(name)


@contextmanager
def _stood_in(checkout: Path) -> Iterator[None]:
    before = {name: sys.modules.get(name) for name in STAND_INS}
    sys.modules.update({name: _stand_in(name) for name in STAND_INS})
    sys.path.insert(0, str(checkout / "networks"))
    try:
        yield
    finally:
        sys.path.remove(str(checkout / "networks"))
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def _stand_in(name: str) -> Any:
    stand_in = MagicMock(name=name)
    stand_in.load_metadata_from_safetensors.return_value = {}
    stand_in.build_minimum_network_metadata.return_value = {}
    return stand_in
