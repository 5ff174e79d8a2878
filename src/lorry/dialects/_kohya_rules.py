"""What the headers of kohya's trainers say of a file's layers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, final

from lorry.dialects._alphas import BY_RANK, Alpha
from lorry.dialects._rules import Rules
from lorry.names import Target


@final
@dataclass(frozen=True, slots=True)
class KohyaRules(Rules):
    """The alpha that kohya's header names, for the layers whose rank it names as well.

    Its trainers write an alpha beside every layer; a file that has none at all was stripped by another tool. A rank
    that differs from the header's says that the file was resized or combined since, and that the header is out of date.
    """

    by_rank: Mapping[tuple[int, bool], float]
    """By (rank, is_kernel)."""
    args: Mapping[str, Any]
    """`ss_network_args`."""

    def alpha(self, target: Target, rank: int, is_kernel: bool) -> Alpha:
        value = self.by_rank.get((rank, is_kernel)) if target.flat else None
        return BY_RANK if value is None else Alpha(value, False, "metadata")

    def full_scale(self, target: Target) -> float | None:
        return None

    def option(self, target: Target, name: str) -> object:
        return self.args.get(name)


def kohya_rules(metadata: Mapping[str, str], has_alphas: bool) -> KohyaRules:
    """Return what the header says; where any layer `has_alphas`, those without have scale 1 whatever it says."""
    args = _args(metadata)
    if has_alphas:
        return KohyaRules({}, args)
    dim, alpha = _number(metadata.get("ss_network_dim")), _number(metadata.get("ss_network_alpha"))
    kernel_dim, kernel_alpha = _number(args.get("conv_dim")), _number(args.get("conv_alpha"))
    pairs = {(dim, False): alpha, (kernel_dim or dim, True): kernel_alpha or alpha}
    return KohyaRules(
        {(int(rank), is_kernel): a for (rank, is_kernel), a in pairs.items() if rank and a}, args
    )


def _args(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        args = json.loads(metadata.get("ss_network_args") or "{}")
    except (ValueError, RecursionError):
        return {}
    return args if isinstance(args, dict) else {}


def _number(value: object) -> float | None:
    """Headers also say `Dynamic` and `None`."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if isfinite(number) else None
