"""What PEFT's configs say of a file's layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from lorry.dialects._alphas import BY_RANK, Alpha, check_alpha
from lorry.dialects._patterns import Patterns
from lorry.dialects._rules import Rules
from lorry.errors import FormatError, UnsupportedAdapterError
from lorry.names import DENOISER, DENOISERS, Target

APPLIED = ("LORA", "LOHA", "LOKR", "OFT", "BOFT", "IA3", "VERA", "HRA")
"""PEFT's types that lorry applies."""
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
"""Initialisations of PEFT that take their start from the base weights, and change those too."""


@final
@dataclass(frozen=True, slots=True)
class PeftRules(Rules):
    """PEFT's configs by component; under None the one that does not say.

    Source: huggingface/peft, `utils/other.py` (`get_pattern_key`), `tuners/lora/layer.py` (`update_layer`), and
    `tuners/lokr/layer.py`, where the scale is alpha / r whatever the layer is made of.
    """

    configs: Mapping[str | None, Mapping[str, Any]]
    _patterns: dict[tuple[str | None, str], Patterns] = field(default_factory=dict)
    """Those of `rank_pattern` and `alpha_pattern`, sorted at their first use."""

    def alpha(self, target: Target, rank: int, is_kernel: bool) -> Alpha:
        value = self._alpha(target)
        if value is None:
            return BY_RANK
        return Alpha(value, bool(self.option(target, "use_rslora")), "metadata")

    def full_scale(self, target: Target) -> float | None:
        alpha, rank = self._alpha(target), self.rank(target)
        return None if alpha is None or rank is None else alpha / rank

    def rank(self, target: Target) -> float | None:
        """The rank that the config gives a layer, or None where it says nothing of it."""
        value = self._by_pattern(target, "rank_pattern", "r")
        return None if value is None else check_alpha(value, f"`r` of {target}")

    def option(self, target: Target, name: str) -> object:
        return self.configs.get(self._name(target.component), {}).get(name)

    def _alpha(self, target: Target) -> float | None:
        value = self._by_pattern(target, "alpha_pattern", "lora_alpha", "alpha")  # `alpha` for LoHa and LoKr
        return None if value is None else check_alpha(value, f"`lora_alpha` of {target}")

    def _by_pattern(self, target: Target, patterns_name: str, *names: str) -> object:
        name = self._name(target.component)
        config = self.configs.get(name, {})
        numbers = config.get(patterns_name) or {}
        if not isinstance(numbers, Mapping):
            raise FormatError(
                f"`{patterns_name}` of the config: expected numbers by pattern, got {numbers!r:.80}."
            )
        if (name, patterns_name) not in self._patterns:
            self._patterns[name, patterns_name] = Patterns(numbers)
        pattern = self._patterns[name, patterns_name].find(target.path)
        if pattern is not None:
            return numbers[pattern]
        return next((config[name] for name in names if config.get(name) is not None), None)

    def _name(self, component: str) -> str | None:
        """The name of a component's config: its own, or None for the one that names no component."""
        same = DENOISERS if component == DENOISER else (component,)
        return next((name for name in same if name in self.configs), None)


def check_config(config: Mapping[str, Any], source: str) -> None:
    """Raise when a config describes what lorry cannot apply.

    Raises:
        UnsupportedAdapterError: names it.
    """
    kind = str(config.get("peft_type") or "LORA").rsplit(".", 1)[-1].upper()
    if kind not in APPLIED:
        raise UnsupportedAdapterError(
            f"{source} is of PEFT's type {kind}; this version of lorry applies {', '.join(APPLIED)}."
        )
    start = str(config.get("init_lora_weights"))
    if start.startswith(CHANGES_BASE):
        raise UnsupportedAdapterError(
            f"{source} was started with {start!r}, which changes the base weights too. Convert it with PEFT: "
            "`save_pretrained(…, path_initial_model_for_weight_conversion=…)`."
        )
