"""What the families ask of shapes, and the errors when shapes do not fit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lorry.errors import FormatError, ShapeMismatchError

UNKNOWN = -1
"""An axis that a delta's own tensors do not tell, until the delta is fitted to its weight."""


Span = tuple[int, int]
"""Rows of a weight: the first, and one past the last."""
Spans = tuple[Span, ...]


def take_rows(tensor: Tensor, spans: Spans) -> Tensor:
    """Return the rows of a tensor that lie in `spans`, in that order; one span alone shares the tensor's memory."""
    pieces = [tensor[first:last] for first, last in spans]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def same_numbers(one: Tensor, other: Tensor) -> bool:
    """Whether tensors are of one shape and the same numbers; eight-bit floats, of the same bits.

    `torch.equal` cannot tell it of such where both have the same memory.
    """
    if one.dtype == other.dtype and one.is_floating_point() and one.itemsize == 1:
        one, other = one.view(torch.uint8), other.view(torch.uint8)
    return torch.equal(one, other)


def all_equal(tensor: Tensor, value: float) -> bool:
    """Whether a tensor has numbers, and each is `value`."""
    if tensor.is_meta:
        return False
    ordered = tensor.float() if tensor.itemsize == 1 else tensor  # torch compares no float8
    return not bool(ordered.any() if value == 0 else (ordered != value).any())


def with_more_channels(tensor: Tensor, channels: int) -> Tensor:
    """Return a tensor with zeros appended along its second axis, up to `channels`."""
    more = tensor.new_zeros(tensor.shape[0], channels - tensor.shape[1], *tensor.shape[2:])
    return torch.cat([tensor, more], dim=1)


def with_fewer_channels(tensor: Tensor, channels: int) -> Tensor | None:
    """Return a tensor without what is beyond `channels` of its second axis, or None where that is not all zeros."""
    return None if bool(tensor[:, channels:].any()) else tensor[:, :channels].clone()


def count_rows(spans: Spans) -> int:
    """Return how many rows `spans` hold."""
    return sum(last - first for first, last in spans)


def are_all(spans: Spans, rows: int) -> bool:
    """Whether `spans` are all of so many rows, each once, in whatever order."""
    ordered = sorted(spans)
    firsts, lasts = [first for first, _ in ordered], [last for _, last in ordered]
    return [*firsts, rows] == [0, *lasts]


def blocks_of(spans: Spans, size: int) -> Spans | None:
    """Return the blocks of `size` rows that make up `spans`, or None where a border lies within a block."""
    if any(row % size for span in spans for row in span):
        return None
    return tuple((first // size, last // size) for first, last in spans)


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
