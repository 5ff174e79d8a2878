"""How strong a layer is by metadata, where it has no alpha tensor: the order of truth's second place.

First comes a layer's own alpha tensor, then what the file's metadata says, then alpha = rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from lorry.dialects._alphas import Alpha
from lorry.names import Target


class Rules(ABC):
    """What metadata says of a file's layers: their strength, and the options that their tensors do not show."""

    @abstractmethod
    def alpha(self, target: Target, rank: int, is_kernel: bool) -> Alpha:
        """The alpha of a layer that has none of its own; `is_kernel` for a convolution of more than 1x1."""

    @abstractmethod
    def full_scale(self, target: Target) -> float | None:
        """The scale of a layer that has no rank, or None where nothing is said of it."""

    @abstractmethod
    def option(self, target: Target, name: str) -> object:
        """The value of a trainer's option for a layer, or None where nothing is said of it."""
