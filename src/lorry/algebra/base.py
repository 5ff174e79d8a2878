"""The contract of a family: what a delta is, whatever it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor, dtype, float32

from lorry.algebra._shapes import Spans, all_equal


@dataclass(frozen=True, eq=False, slots=True)
class LowRank:
    """A delta as two factors: `scale * up @ down`, with the kernel of a convolution held by `down`.

    Several of these on one target join along the rank into one pair (`LowRank` of the concatenated factors).
    """

    down: Tensor
    """(rank, in), or (rank, in / groups, *kernel) for a convolution of one to three axes."""
    up: Tensor
    """(out, rank)."""
    scale: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]


class Delta(ABC):
    """What an adapter adds to one base weight, as a frozen value that shares its tensors with nobody's model.

    A concrete family is a frozen dataclass of the tensors that a file holds plus a few numbers. Its formula stands
    once, in `weight`; `low_rank` is the same effect in factors where the family has them.
    """

    family: ClassVar[str]
    needs_base: ClassVar[bool] = False
    """Whether `weight` needs the base weight."""
    multiplies: ClassVar[bool] = False
    """Whether it multiplies each number of the base, so that there is nothing to add to zeros."""
    vanishes_with: ClassVar[tuple[str, ...]] = ()
    """The tensors of which any one of zeros alone makes the whole delta zero."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight it is for: (out, in), or (out, in / groups, *kernel)."""

    @property
    def rank(self) -> int | None:
        """The rank, or None where the family has none."""
        return None

    @property
    def rank_scale(self) -> float:
        """The factor that the file itself puts on the delta (alpha / rank for LoRA; 1.0 where there is none)."""
        return 1.0

    @abstractmethod
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors it is made of, by field name."""

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same delta over other tensors (moved, cast), given under the names that `tensors` uses."""
        own: Any = self
        return replace(own, **tensors)

    @abstractmethod
    def weight(self, base: Tensor | None = None, dtype: dtype = float32, strength: float = 1.0) -> Tensor:
        """The full delta: what is to be added to `base`.

        Args:
            base: the base weight, for families that need it; others ignore it.
            dtype: what to compute in and return; the factors are upcast to it before anything is multiplied.
            strength: the user's number. Most families are linear in it; those that are not say how they depend on it.
                At 0 the delta is zero.

        Returns:
            A new tensor of `shape`, on the device of the factors. It shares no memory with them.
        """

    def low_rank(self, dtype: dtype = float32) -> LowRank | None:
        """The delta as two factors, or None where the family has no such form.

        Args:
            dtype: of factors that have to be computed; those that the file holds are returned as they are.
        """
        return None

    def exact_factors(self, dtype: dtype = float32) -> LowRank | None:
        """The delta as two factors whatever their rank, or None where the family has none without the base weight.

        Where `low_rank` asks what is cheap to apply, this asks what is true: the rank may be that of a full matrix.

        Args:
            dtype: of factors that have to be computed; those that the file holds are returned as they are.
        """
        return self.low_rank(dtype)

    @abstractmethod
    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        """The same delta for a weight of `shape`, where that differs by trailing 1x1 axes only; else None."""

    def rows(self, spans: Spans) -> Delta | None:
        """The delta of some rows of the weight, exactly, or None where the family's parts do not tell rows apart.

        Args:
            spans: of rows, as (first, one past the last); the result has them in that order.
        """
        return None

    def padded(self, shape: tuple[int, ...]) -> Self | None:
        """The same delta for a weight of more input channels, the new ones untouched; None where only a wrapper can."""
        return None

    def narrowed(self, channels: int) -> Delta | None:
        """The inverse of `padded`: the delta of the first input channels, or None where it changes others too."""
        return None

    def completed(self, weight_of: Callable[[str], Tensor]) -> Delta:
        """The same delta with the base weights of other layers, where it depends on those; itself where it does not.

        Args:
            weight_of: gives a layer's base weight by its name.
        """
        return self

    def part(self, parameter: str) -> Delta | None:
        """The delta of one of the module's parameters, "weight" or "bias"; None for one that it leaves alone."""
        return self if parameter == "weight" else None

    def adds_nothing(self) -> bool:
        """Whether its own numbers say that it leaves every weight as it is; False where they do not tell, or are not
        there (of a header alone).
        """
        tensors = self.tensors()
        return any(all_equal(tensors[name], 0.0) for name in self.vanishes_with if name in tensors)

    @property
    def nbytes(self) -> int:
        """The bytes that its tensors hold."""
        return sum(tensor.nbytes for tensor in self.tensors().values())
