"""The weighted sum of deltas for one weight, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lorry.adapters.matrices import Matrix, check_without_base, dense_of, matrix_of, needs_base, shape_of
from lorry.adapters.svd import joined
from lorry.algebra import Delta, FullDelta, LohaDelta, LokrDelta, LoraDelta, LowRank, PartsDelta, VeraDelta
from lorry.errors import ShapeMismatchError, UnsupportedAdapterError

Term = tuple[Delta, float]
"""A delta and the factor to add it at."""


def added(terms: Sequence[Term], dtype: torch.dtype) -> Delta | None:
    """Return the sum of deltas, each at its factor; None where every factor is 0.

    A single delta keeps its family, with the factor in its alpha. Several with factors are joined along the rank into
    one LoRA, whatever their families (LoHa and LoKr by products of their factors), unless the full difference is the
    smaller; a full difference among them makes the sum one. Biases are added beside.

    Args:
        terms: deltas for one weight.
        dtype: of the tensors of a sum that has to be computed; the computation is in float32 at least.

    Raises:
        ShapeMismatchError: they are for weights of different shapes.
        UnsupportedAdapterError: one of several, or one at another factor than 1, depends on the base weight.
    """
    terms = [(delta, factor) for delta, factor in terms if factor != 0]
    if not terms:
        return None
    if len(terms) == 1:
        return scaled(*terms[0])
    on_weight = [(part, factor) for delta, factor in terms if (part := delta.part("weight")) is not None]
    on_bias = [(part, factor) for delta, factor in terms if (part := delta.part("bias")) is not None]
    weight = _sum(on_weight, dtype) if len(on_weight) > 1 else added(on_weight, dtype)
    bias = _sum(on_bias, dtype) if len(on_bias) > 1 else added(on_bias, dtype)
    return weight if bias is None else PartsDelta(weight, bias)


def scaled(delta: Delta, factor: float) -> Delta:
    """Return a delta times a number, of the same family and with the same tensors where the family has an alpha.

    Raises:
        UnsupportedAdapterError: the family depends on the base weight, and so is not linear in a factor.
    """
    if factor == 1:
        return delta
    if isinstance(delta, VeraDelta):
        return replace(delta, lambda_b=delta.lambda_b * factor)
    if needs_base(delta):
        raise UnsupportedAdapterError(
            f"{delta.family}: it is not proportional to a factor, so that it can be kept as it is, at 1, and nothing "
            "else. `lorry bake` applies it at any strength."
        )
    match delta:
        case PartsDelta():
            weight = None if delta.on_weight is None else scaled(delta.on_weight, factor)
            return PartsDelta(weight, scaled(delta.on_bias, factor))
        case LoraDelta() if factor < 0:
            # Some programs take an alpha for a count: it stays positive.
            return scaled(replace(delta, up=-delta.up), -factor)
        case LoraDelta():
            return replace(delta, alpha=factor * delta.rank_scale * delta.rank, rank_stabilised=False)
        case LohaDelta():
            return replace(delta, alpha=factor * delta.rank_scale * delta.rank)
        case LokrDelta() if delta.rank is None:
            return replace(delta, full_scale=factor * delta.full_scale)
        case LokrDelta():
            return replace(delta, alpha=factor * delta.rank_scale * (delta.rank or 1))
        case _:
            own = next(iter(delta.tensors().values())).dtype
            computed = torch.promote_types(own, torch.float32)
            return FullDelta(delta.weight(dtype=computed, strength=factor).to(own))


def sum_of(terms: Sequence[tuple[Matrix, float]]) -> Matrix:
    """Return the weighted sum of matrices: factors where all are factors and few enough, else in full."""
    matrices = [matrix for matrix, _ in terms]
    factored = [matrix for matrix in matrices if isinstance(matrix, LowRank)]
    rank = sum(pair.rank for pair in factored)
    if len(factored) == len(terms) and rank * _sides(factored[0]) < dense_count(matrices[0]):
        return joined(factored, [factor for _, factor in terms])
    total = dense_of(matrices[0]).clone().mul_(terms[0][1])
    for matrix, factor in terms[1:]:
        total.add_(dense_of(matrix), alpha=factor)
    return total


def delta_of(matrix: Matrix, dtype: torch.dtype) -> Delta:
    """Return a matrix as a LoRA of scale 1, or as a full difference."""
    if isinstance(matrix, Tensor):
        return FullDelta(matrix.to(dtype))
    up = matrix.up if matrix.scale == 1 else matrix.up * matrix.scale
    return LoraDelta(matrix.down.to(dtype).contiguous(), up.to(dtype).contiguous(), alpha=float(matrix.rank))


def dense_count(matrix: Matrix) -> int:
    """Return how many numbers the matrix has in full."""
    return shape_of(matrix)[0] * torch.Size(shape_of(matrix)[1:]).numel()


def _sides(pair: LowRank) -> int:
    return pair.up.shape[0] + pair.down[0].numel()


def _sum(terms: Sequence[Term], dtype: torch.dtype) -> Delta:
    for delta, _ in terms:
        check_without_base(delta)
    # A LoHa of a convolution does not tell its kernel's axes; whoever has the most axes knows best.
    first = max((delta.shape for delta, _ in terms), key=len)
    fitted = [(delta.fitted(first), factor) for delta, factor in terms]
    for (delta, _), (fits, _) in zip(terms, fitted, strict=True):
        if fits is None:
            raise ShapeMismatchError(
                f"the deltas are for weights of {first} and of {delta.shape}: they were made for different base models."
            )
    computed = torch.promote_types(dtype, torch.float32)
    matrices = [(matrix_of(delta, computed), factor) for delta, factor in fitted if delta is not None]
    return delta_of(sum_of(matrices), dtype)
