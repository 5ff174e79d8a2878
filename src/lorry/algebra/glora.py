"""GLoRA: one low-rank matrix added to the base weight, another multiplied onto it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from lorry.algebra._shapes import Spans, needed, no_meaning, take_rows, trimmed
from lorry.algebra.base import Delta


@final
@dataclass(frozen=True, eq=False, slots=True)
class GloraDelta(Delta):
    """`scale * (W @ (a1 @ a2) + b1 @ b2)`; in the old layout `scale * (W @ (a2 @ a1) + b2 @ b1)`.

    On a convolution W is multiplied along its input channels, at each place of the kernel. `scale` is `alpha / rank`,
    or `alpha / sqrt(rank)` where `rank_stabilised` (LyCORIS does not fold that into the alpha of this family), or 1
    where `alpha` is None. It is linear in the strength.

    Source: Chavan et al., One-for-All: Generalized LoRA (arXiv:2306.07967), section 3.2, without its terms for biases.
    """

    a1: Tensor
    """(in, rank); in the old layout (rank, in). Trailing 1x1 axes for a convolution."""
    a2: Tensor
    """(rank, in); old (in, rank)."""
    b1: Tensor
    """(out, rank); old (rank, in), with the kernel."""
    b2: Tensor
    """(rank, in), for a convolution (rank, in, kh, kw); old (out, rank)."""
    alpha: float | None = None
    old_layout: bool = False
    rank_stabilised: bool = False

    family: ClassVar[str] = "GLoRA"
    needs_base: ClassVar[bool] = True

    def __post_init__(self) -> None:
        problem = _problem(*self._roles())
        if problem:
            layout = "old" if self.old_layout else "new"
            raise no_meaning(f"a GLoRA in the {layout} layout", self.tensors(), problem)

    @staticmethod
    def find_layout(a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor) -> bool | None:
        """Return the value of `old_layout` that these shapes allow, or None where they allow none.

        For a square weight they allow both: it is then the one of the lower rank, and the new one for equal ranks.
        """
        ranks = {old: (a1 if old else a2).shape[0] for old in (False, True)}
        possible = [old for old in ranks if not _problem(*_in_roles(a1, a2, b1, b2, old))]
        return min(possible, key=ranks.__getitem__, default=None)

    def _roles(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _in_roles(self.a1, self.a2, self.b1, self.b2, self.old_layout)

    @property
    def shape(self) -> tuple[int, ...]:
        _, _, up, down = self._roles()
        return (up.shape[0], *down.shape[1:])

    @property
    def rank(self) -> int:
        return self._roles()[1].shape[0]

    @property
    def rank_scale(self) -> float:
        if self.alpha is None:
            return 1.0
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)

    def tensors(self) -> Mapping[str, Tensor]:
        return {"a1": self.a1, "a2": self.a2, "b1": self.b1, "b2": self.b2}

    def weight(
        self, base: Tensor | None = None, dtype: torch.dtype = torch.float32, strength: float = 1.0
    ) -> Tensor:
        """The full delta, for which the base weight is needed.

        Raises:
            ValueError: there is no base, or it is of another shape (ShapeMismatchError).
        """
        fits = base is not None and trimmed(tuple(base.shape)) == trimmed(self.shape)
        weight = needed(base, "a GLoRA", fits).to(self.a1.device, dtype).reshape(self.shape)
        left, right, up, down = (factor.to(dtype) for factor in self._roles())
        scaled = weight.movedim(1, -1) @ left.flatten(1) @ right.flatten(1)
        added = (up.flatten(1) @ down.flatten(1)).reshape(self.shape)
        return (added + scaled.movedim(-1, 1)).mul_(strength * self.rank_scale)

    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        if self.shape == shape:
            return self
        if trimmed(self.shape) != trimmed(shape):
            return None
        name, down = ("b1", self.b1) if self.old_layout else ("b2", self.b2)
        return replace(self, **{name: down.reshape(self.rank, *shape[1:])})

    def rows(self, spans: Spans) -> Self:
        name, up = ("b2", self.b2) if self.old_layout else ("b1", self.b1)
        return replace(self, **{name: take_rows(up, spans)})


def _in_roles(
    a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor, old: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the factors in the order of the formula: `W @ (left @ right) + up @ down`."""
    return (a2, a1, b2, b1) if old else (a1, a2, b1, b2)


def _problem(left: Tensor, right: Tensor, up: Tensor, down: Tensor) -> str | None:
    """Return what keeps four factors from being a GLoRA, or None."""
    if any(factor.ndim < 2 for factor in (left, right, up, down)):
        return "expected factors of 2 axes or more"
    if any(factor.shape[2:].numel() != 1 for factor in (left, right, up)):
        return "expected a kernel in the last factor only"
    if 0 in left.shape or left.shape[:2] != right.shape[1::-1]:
        return "the factors that multiply the weight do not join"
    if up.shape[1] != down.shape[0] or up.shape[1] != left.shape[1]:
        return "the ranks differ"
    return "the parts are for another number of inputs" if left.shape[0] != down.shape[1] else None
