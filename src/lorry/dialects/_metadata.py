"""Find what a file's metadata says about its layers: a config of PEFT's first, then kohya's header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lorry.dialects._header_alpha import find_header_alpha
from lorry.dialects._kohya_rules import kohya_rules
from lorry.dialects._peft_rules import PeftRules, check_config
from lorry.dialects._rules import Rules
from lorry.errors import FormatError
from lorry.files import TensorFile

METADATA_KEY = "lora_adapter_metadata"
"""Source: huggingface/diffusers, `loaders/lora_base.py`, `LORA_ADAPTER_METADATA_KEY`."""


def find_rules(file: TensorFile, has_alphas: bool) -> Rules:
    """Return what a file's metadata says about its layers' strength.

    Args:
        file: the file.
        has_alphas: whether any layer has an alpha tensor. Then those without have scale 1, whatever kohya's header
            says.

    Raises:
        UnsupportedAdapterError: a config describes what lorry cannot apply.
        FormatError: the metadata cannot be read.
    """
    configs = _configs(file)
    if configs:
        for config in configs.values():
            check_config(config, file.source)
        return PeftRules(configs)
    return find_header_alpha(file, has_alphas) or kohya_rules(file.metadata, has_alphas)


def _configs(file: TensorFile) -> dict[str | None, dict[str, Any]]:
    configs: dict[str | None, dict[str, Any]] = {}
    for name, value in _header_config(file).items():
        component, dot, option = name.rpartition(".")
        configs.setdefault(component if dot else None, {})[option] = value
    return configs if file.config is None else {None: dict(file.config)}


def _header_config(file: TensorFile) -> Mapping[str, Any]:
    try:
        found = json.loads(file.metadata.get(METADATA_KEY) or "{}")
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file.source}: the metadata `{METADATA_KEY}` is no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise FormatError(f"{file.source}: the metadata `{METADATA_KEY}` is no JSON object.")
    return found
