"""How deltas for one layer become one: the method, its numbers, and what it is reduced to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from lorry.adapters import rank_for
from lorry.adapters.adding import added, delta_of
from lorry.adapters.matrices import matrix_of, needs_base, spectrum_of
from lorry.adapters.mixing import Method, mix
from lorry.adapters.reducing import find_reducible, reduced
from lorry.algebra import Delta, PartsDelta
from lorry.errors import StateError, did_you_mean
from lorry.workflows.rules import Rule

DENSITY = 0.5
"""The share of numbers that is kept where none is given."""


@final
@dataclass(frozen=True, slots=True)
class Recipe:
    """How adapters are mixed, but for which they are."""

    method: Method = Method.SUM
    density: float | None = None
    """The share of numbers that `ties`, `dare` and `magnitude` keep: half when None. Other methods have none."""
    rank: int | None = None
    """To reduce the result to; None leaves it exact."""
    energy: float | None = None
    """The share of the squared norm to reduce each layer's result to; None leaves it exact."""
    rules: tuple[Rule, ...] = ()
    """Further factors for the layers that a pattern names."""
    seed: int = 0
    """Of what `dare` drops, and of sketches."""

    def __post_init__(self) -> None:
        if self.density is not None and not 0 < self.density <= 1:
            raise StateError(f"A density of {self.density:g}: expected a share over 0 and up to 1.")
        if self.density is not None and not self.thins:
            raise StateError(
                f"A density of {self.density:g}: the method {self.method.value} keeps all numbers. Leave the density "
                "away, or choose ties, dare, dare-ties or magnitude (`--method`)."
            )
        if self.energy is not None and not 0 < self.energy <= 1:
            raise StateError(f"An energy of {self.energy:g}: expected a share over 0 and up to 1.")
        if self.rank is not None and self.rank < 1:
            raise StateError(f"A rank of {self.rank}: expected 1 or more.")
        if self.rank is not None and self.energy is not None:
            raise StateError("A rank and an energy at once: give one of them.")

    @property
    def thins(self) -> bool:
        """Whether the method keeps some of the numbers only."""
        return self.method not in (Method.SUM, Method.ORTHOGONAL)

    @property
    def share(self) -> float:
        """The share of numbers that is kept, by a method that keeps some only."""
        return DENSITY if self.density is None else self.density

    @property
    def reduces(self) -> bool:
        """Whether the result is cut."""
        return self.rank is not None or self.energy is not None


def get_method(name: str) -> Method:
    """Return the method of that name.

    Raises:
        StateError: there is none.
    """
    known = [method.value for method in Method]
    if name not in known:
        raise StateError(
            f"There is no method {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}."
        )
    return Method(name)


def combined(
    terms: Sequence[tuple[Delta, float]], recipe: Recipe, dtype: torch.dtype, generator: torch.Generator
) -> Delta | None:
    """Return the deltas for one layer as one, mixed and reduced as the recipe says; None where every factor is 0.

    Biases and norms are summed whatever the method: there is no rank to cut, and too few numbers to vote.
    """
    terms = [(delta, factor) for delta, factor in terms if factor != 0]
    if _mixes(terms, recipe.method):
        delta: Delta | None = _mixed(terms, recipe, generator)
    else:
        # What is cut afterwards is rounded then, and not before.
        delta = added(terms, torch.float32 if recipe.reduces else dtype)
    if delta is None:
        return None
    delta = _cut(delta, recipe)
    return delta.with_tensors({name: tensor.to(dtype) for name, tensor in delta.tensors().items()})


def _mixes(terms: Sequence[tuple[Delta, float]], method: Method) -> bool:
    """Whether a method other than the sum has something to do on one layer."""
    weights = [delta for delta, _ in terms if delta.part("weight") is not None]
    if method is Method.SUM or len(weights) < (2 if method is Method.ORTHOGONAL else 1):
        return False
    return all(find_reducible(delta) is not None and not needs_base(delta) for delta in weights)


def _mixed(terms: Sequence[tuple[Delta, float]], recipe: Recipe, generator: torch.Generator) -> Delta:
    weights = [(weight, factor) for delta, factor in terms if (weight := delta.part("weight")) is not None]
    shape = max((weight.shape for weight, _ in weights), key=len)
    matrices = [matrix_of(weight.fitted(shape) or weight) for weight, _ in weights]
    matrix = mix(recipe.method, matrices, [factor for _, factor in weights], recipe.share, generator)
    weight = delta_of(matrix, torch.float32)
    biases = [(bias, factor) for delta, factor in terms if (bias := delta.part("bias")) is not None]
    bias = added(biases, torch.float32)
    return weight if bias is None else PartsDelta(weight, bias)


def _cut(delta: Delta, recipe: Recipe) -> Delta:
    if recipe.rank is not None:
        return reduced(delta, recipe.rank, seed=recipe.seed)
    matrix = find_reducible(delta) if recipe.energy is not None else None
    if matrix is None or recipe.energy is None:
        return delta
    return reduced(delta, rank_for(spectrum_of(matrix), recipe.energy), seed=recipe.seed)
