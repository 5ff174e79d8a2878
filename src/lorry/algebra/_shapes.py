"""What the families ask of shapes, and the errors when shapes do not fit."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lorry.errors import FormatError, ShapeMismatchError

UNKNOWN = -1
"""An axis that a delta's own tensors do not tell, until the delta is fitted to its weight."""


def present(**tensors: Tensor | None) -> dict[str, Tensor]:
    """Return those of `tensors` that are there."""
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return `shape` without trailing axes of 1 after the second: what (out, in) and (out, in, 1, 1) share."""
    shape = tuple(shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def columns(shape: tuple[int, ...]) -> int:
    """Return how many numbers a row of a weight has: everything after the first axis."""
    count = 1
    for size in shape[1:]:
        count *= size
    return count


def no_meaning(family: str, tensors: Mapping[str, Tensor], problem: str) -> FormatError:
    """Return the error for tensors that do not make a delta together."""
    parts = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    return FormatError(
        f"{family} of {parts} has no meaning: {problem}. "
        "The file is damaged, or two modules' tensors were paired wrongly by the tool that wrote it."
    )


def needed(base: Tensor | None, family: str, fits: bool) -> Tensor:
    """Return the base weight for a family that cannot do without.

    Raises:
        ValueError: there is none.
        ShapeMismatchError: the delta is for a weight of another shape.
    """
    if base is None:
        raise ValueError(f"{family} changes a weight by what the weight is: `weight` needs `base`.")
    if not fits:
        raise ShapeMismatchError(
            f"{family}: the base weight {tuple(base.shape)} is not of the shape it is for."
        )
    return base
