"""The tensors of one layer in the hand of who builds a delta from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import final

from torch import Tensor

from lorry.adapters.adapter import ScaleSource
from lorry.algebra import Delta
from lorry.dialects._alphas import Alpha, check_alpha, read_alpha, read_number
from lorry.dialects._rules import Rules
from lorry.dialects._suffixes import Role
from lorry.errors import FormatError
from lorry.names import Target

NUMBERS = frozenset({"alpha", "scale", "on_input", "scaled_oft", "bias_indices", "bias_size", "reshape"})
"""The roles of single numbers and of indices, of any dtype; all others are of floating-point tensors."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class Built:
    """A delta, and where its scale is from."""

    delta: Delta
    source: ScaleSource = "rank"


@final
@dataclass(frozen=True, eq=False, slots=True)
class LayerParts:
    """The tensors of one layer by role, and what the file's metadata says of it."""

    target: Target
    keys: Mapping[Role, str]
    tensors: Mapping[Role, Tensor]
    rules: Rules

    def alpha(self, rank: int, is_kernel: bool = False) -> Alpha:
        """The layer's alpha: its own, or what the metadata says.

        Raises:
            FormatError: its own is no number that a trainer can have meant.
        """
        if "scale" in self.tensors:
            return Alpha(self._number("scale") * rank, False, "alpha tensor")
        if "alpha" in self.tensors:
            return Alpha(self._number("alpha"), False, "alpha tensor")
        return self.rules.alpha(self.target, rank, is_kernel)

    def limit(self) -> float | None:
        """The alpha of a layer of which it is a limit, where 0 is allowed; None for a layer without.

        Raises:
            FormatError: it is negative or not finite.
        """
        if "alpha" not in self.tensors:
            return None
        value = read_number(self.tensors["alpha"], self.keys["alpha"])
        if not isfinite(value) or value < 0:
            raise FormatError(
                f"`{self.keys['alpha']}`: expected a limit that is finite and not negative, got {value!r}."
            )
        return value

    def is_set(self, role: Role) -> bool:
        """Whether a flag is there and not zero."""
        return role in self.tensors and bool(read_number(self.tensors[role], self.keys[role]))

    def option(self, name: str) -> object:
        """What the metadata says of a trainer's option, or None."""
        return self.rules.option(self.target, name)

    def number_option(self, name: str, default: float) -> float:
        """An option that is a number other than zero.

        Raises:
            FormatError: it is something else.
        """
        value = self.option(name)
        return default if value is None else check_alpha(value, f"`{name}` of {self.target}")

    def check_dtypes(self) -> None:
        """Raise when a tensor holds no floating-point numbers.

        Raises:
            FormatError: names the first such.
        """
        for role, tensor in self.tensors.items():
            if role not in NUMBERS and (not tensor.is_floating_point() or tensor.ndim == 0):
                raise FormatError(
                    f"expected factors of floating-point numbers, got {tensor.dtype} {tuple(tensor.shape)}."
                )

    def _number(self, role: Role) -> float:
        return read_alpha(self.tensors[role], self.keys[role])
