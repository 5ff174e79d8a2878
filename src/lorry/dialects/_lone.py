"""Single numbers that stand beside a file's layers and are no layer's: an alpha for all of them, and bookkeeping."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from torch import Tensor

from lorry.adapters import Ignored
from lorry.dialects._alphas import Alpha, read_alpha, read_number
from lorry.dialects._rules import Rules
from lorry.errors import FormatError
from lorry.files import TensorFile
from lorry.names import Target

ALPHAS = ("lora_alpha", "network_alpha", "alpha")
"""What a file calls one alpha for all of its layers. Source: LoRA modules that save themselves with `state_dict()`."""
STABILISED = "use_rslora"
"""What stands beside it where the alpha is divided by the root of the rank."""
RANKS = ("lora_rank", "network_dim", "rank")
BOOKKEEPING = {
    **dict.fromkeys(("step", "steps", "global_step", "epoch", "iteration"), "how far training had come"),
    **dict.fromkeys(RANKS, "the rank, which the factors tell as well"),
}
"""What a number is that carries no weights. The names stand alone in a key, without a layer."""
FP8 = "scaled_fp8"
"""ComfyUI's mark of a file in float8: no numbers, or two that mean nothing."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class LoneAlpha(Rules):
    """One alpha for all layers that have none of their own; what else metadata says stays."""

    value: float
    stabilised: bool
    rest: Rules

    def alpha(self, target: Target, rank: int, is_kernel: bool) -> Alpha:
        return Alpha(self.value, self.stabilised, "alpha tensor")

    def full_scale(self, target: Target) -> float | None:
        return self.rest.full_scale(target)

    def option(self, target: Target, name: str) -> object:
        return self.rest.option(target, name)


def with_lone_alpha(file: TensorFile, rules: Rules) -> Rules:
    """Return rules in which the file's alpha for all layers counts, where it has one.

    Raises:
        FormatError: it has two, or what it has is no number that a trainer can have meant.
    """
    found = [key for key in ALPHAS if key in file.tensors]
    if not found:
        return rules
    if len(found) > 1:
        raise FormatError(
            f"{file.source}: `{found[0]}` and `{found[1]}` are both an alpha for all layers. Remove one of the keys."
        )
    stabilised = STABILISED in file.tensors and bool(read_number(file.tensors[STABILISED], STABILISED))
    return LoneAlpha(read_alpha(file.tensors[found[0]], found[0]), stabilised, rules)


def alpha_keys(file: TensorFile) -> tuple[str, ...]:
    """Return the keys of a file's alpha for all layers."""
    found = tuple(key for key in ALPHAS if key in file.tensors)
    return (*found, STABILISED) if found and STABILISED in file.tensors else found


def sort_lone(file: TensorFile, unknown: Iterable[str]) -> tuple[list[Ignored], list[str]]:
    """Part keys that are no layer's into those that carry no weights, with the reason, and those still unknown."""
    ignored: list[Ignored] = []
    left: list[str] = []
    for key in unknown:
        reason = _reason(key.rpartition(".")[2], file.tensors[key]) if key.count(".") < 2 else None
        if reason is None:
            left.append(key)
        else:
            ignored.append(Ignored(key, reason))
    return ignored, left


def _reason(name: str, tensor: Tensor) -> str | None:
    if name == FP8 and tensor.numel() <= 2:
        return "ComfyUI's mark of a file in float8, which carries no numbers"
    return BOOKKEEPING.get(name) if tensor.numel() == 1 else None
