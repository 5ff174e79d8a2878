"""How strong a layer is by metadata, where it has no alpha tensor: the order of truth's second place.

First comes a layer's own alpha tensor, then what the file's metadata says, then alpha = rank.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, final

from lorry.dialects._alphas import BY_RANK, Alpha, check_alpha
from lorry.errors import FormatError, UnsupportedAdapterError
from lorry.files import TensorFile
from lorry.names import DENOISER, DENOISERS, Target

METADATA_KEY = "lora_adapter_metadata"
"""Source: huggingface/diffusers, `loaders/lora_base.py`, `LORA_ADAPTER_METADATA_KEY`."""
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
"""Initialisations of PEFT that take their start from the base weights, and change those too."""


class Rules(ABC):
    """What metadata says of the layers that have no alpha of their own."""

    @abstractmethod
    def alpha(self, target: Target, rank: int, is_kernel: bool) -> Alpha:
        """The alpha of one layer; `is_kernel` for a convolution of more than 1x1."""


@final
class NoRules(Rules):
    """Metadata that says nothing."""

    def alpha(self, target: Target, rank: int, is_kernel: bool) -> Alpha:
        return BY_RANK


@final
@dataclass(frozen=True, slots=True)
class PeftRules(Rules):
    """PEFT's configs by component; under None the one that does not say.

    Source: huggingface/peft, `utils/other.py` (`get_pattern_key`) and `tuners/lora/layer.py` (`update_layer`).
    """

    configs: Mapping[str | None, Mapping[str, Any]]

    def alpha(self, target: Target, rank: int, is_kernel: bool) -> Alpha:
        config = self._config(target.component)
        if config is None:
            return BY_RANK
        patterns = config.get("alpha_pattern") or {}
        pattern = next((p for p in patterns if re.match(rf"(.*\.)?({p})$", target.path)), None)
        value = config.get("lora_alpha") if pattern is None else patterns[pattern]
        if value is None:
            return BY_RANK
        return Alpha(
            check_alpha(value, f"`lora_alpha` of {target}"), bool(config.get("use_rslora")), "metadata"
        )

    def _config(self, component: str) -> Mapping[str, Any] | None:
        same = DENOISERS if component == DENOISER else (component,)
        return next((self.configs[name] for name in (*same, None) if name in self.configs), None)


@final
@dataclass(frozen=True, slots=True)
class KohyaRules(Rules):
    """The alpha that kohya's header names, for the layers whose rank it names as well.

    Its trainers write an alpha beside every layer; a file that has none at all was stripped by another tool. A rank
    that differs from the header's says that the file was resized or combined since, and that the header is out of date.
    """

    by_rank: Mapping[tuple[int, bool], float]
    """By (rank, is_kernel)."""

    def alpha(self, target: Target, rank: int, is_kernel: bool) -> Alpha:
        value = self.by_rank.get((rank, is_kernel)) if target.flat else None
        return BY_RANK if value is None else Alpha(value, False, "metadata")


def find_rules(file: TensorFile, has_alphas: bool) -> Rules:
    """Return what a file's metadata says about its layers' strength.

    Args:
        file: the file.
        has_alphas: whether any layer has an alpha tensor. Then those without have scale 1, whatever kohya's header
            says.

    Raises:
        UnsupportedAdapterError: a config describes something else than LoRA.
        FormatError: the metadata cannot be read.
    """
    configs = _configs(file)
    if configs:
        for config in configs.values():
            _check_config(config, file.source)
        return PeftRules(configs)
    return NoRules() if has_alphas else _kohya_rules(file.metadata)


def _configs(file: TensorFile) -> dict[str | None, dict[str, Any]]:
    configs: dict[str | None, dict[str, Any]] = {}
    for name, value in _header_config(file).items():
        component, dot, option = name.rpartition(".")
        configs.setdefault(component if dot else None, {})[option] = value
    return configs if file.config is None else {None: dict(file.config)}


def _header_config(file: TensorFile) -> Mapping[str, Any]:
    try:
        found = json.loads(file.metadata.get(METADATA_KEY) or "{}")
    except ValueError as error:
        raise FormatError(f"{file.source}: the metadata `{METADATA_KEY}` is no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise FormatError(f"{file.source}: the metadata `{METADATA_KEY}` is no JSON object.")
    return found


def _check_config(config: Mapping[str, Any], source: str) -> None:
    kind = str(config.get("peft_type") or "LORA").rsplit(".", 1)[-1].upper()
    if kind != "LORA":
        raise UnsupportedAdapterError(
            f"{source} is of PEFT's type {kind}; this version of lorry applies LORA only."
        )
    start = str(config.get("init_lora_weights"))
    if start.startswith(CHANGES_BASE):
        raise UnsupportedAdapterError(
            f"{source} was started with {start!r}, which changes the base weights too. Convert it with PEFT: "
            "`save_pretrained(…, path_initial_model_for_weight_conversion=…)`."
        )


def _kohya_rules(metadata: Mapping[str, str]) -> Rules:
    try:
        args = json.loads(metadata.get("ss_network_args") or "{}")
    except ValueError:
        args = {}
    args = args if isinstance(args, dict) else {}
    dim, alpha = _number(metadata.get("ss_network_dim")), _number(metadata.get("ss_network_alpha"))
    kernel_dim, kernel_alpha = _number(args.get("conv_dim")), _number(args.get("conv_alpha"))
    pairs = {(dim, False): alpha, (kernel_dim or dim, True): kernel_alpha or alpha}
    return KohyaRules({(int(rank), is_kernel): a for (rank, is_kernel), a in pairs.items() if rank and a})


def _number(value: object) -> float | None:
    """Headers also say `Dynamic` and `None`."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if isfinite(number) else None
