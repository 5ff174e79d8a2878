"""The numbers that say how strong a layer is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from lorry.adapters.adapter import ScaleSource
from lorry.errors import FormatError


@final
@dataclass(frozen=True, slots=True)
class Alpha:
    """What `LoraDelta` needs to know its scale."""

    value: float | None
    rank_stabilised: bool
    source: ScaleSource


BY_RANK = Alpha(None, False, "rank")
LARGEST: Final = torch.finfo(torch.float32).max
"""Adapters are computed with in float32, and an alpha beyond it would be infinite there."""


def read_alpha(tensor: Tensor, key: str) -> float:
    """Return the number in an alpha tensor, of shape () or (1,) and of any dtype.

    Raises:
        FormatError: it is no number, or one that no trainer can have meant.
    """
    return check_alpha(read_number(tensor, key), f"`{key}`")


def read_number(tensor: Tensor, key: str) -> float:
    """Return the number in a tensor of shape () or (1,) and of any dtype, flags too.

    Raises:
        FormatError: it holds several, or its value is not at hand.
    """
    if tensor.numel() != 1 or tensor.is_meta or tensor.is_complex():
        raise FormatError(
            f"`{key}`: expected one number, got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}."
        )
    return float(tensor.item())


def check_alpha(value: object, where: str) -> float:
    """Return `value` as a float.

    Zero is refused. Trainers read it as "alpha = rank", so none of them can have trained with it, and taking it at
    its word would leave the layer out without a sound.

    Raises:
        FormatError: `value` is no number that is finite in float32, or is zero.
    """
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")
    if not abs(number) <= LARGEST or number == 0:
        raise FormatError(
            f"{where}: expected an alpha that is finite and not zero, got {value!r}. The file is damaged. To load it "
            "at alpha = rank, remove that key."
        )
    return number
