"""A delta as a matrix that can be computed with: in factors where that is the smaller form, else in full."""

from __future__ import annotations

import torch
from torch import Tensor

from lorry.adapters.svd import Svd, dense_svd, factor_spectrum, factor_svd, sketch_svd
from lorry.algebra import UNKNOWN, Delta, LowRank
from lorry.errors import UnsupportedAdapterError

Matrix = LowRank | Tensor
"""Factors, or a tensor of the weight's shape."""

BLOCK = 1 << 22
"""Numbers that are widened at a time where a full matrix is only looked at."""
SKETCHED_BELOW = 0.25
"""A sketch is taken for ranks up to this share of the shorter side; beyond it the exact decomposition is as fast."""


def needs_base(delta: Delta) -> bool:
    """Whether a delta's numbers depend on the weight that it is added to, if only on how many columns that has."""
    on_weight = delta.part("weight")
    return on_weight is not None and (on_weight.needs_base or UNKNOWN in on_weight.shape)


def matrix_of(delta: Delta, dtype: torch.dtype = torch.float32) -> Matrix:
    """Return a delta as factors, where these hold fewer numbers than the full matrix, or else in full.

    Raises:
        UnsupportedAdapterError: what the delta is depends on the base weight.
    """
    check_without_base(delta)
    pair = delta.exact_factors(dtype)
    if pair is None or pair.rank * (pair.up.shape[0] + pair.down[0].numel()) >= _count(delta.shape):
        return delta.weight(dtype=dtype)
    return LowRank(pair.down.to(dtype), pair.up.to(dtype), pair.scale)


def check_without_base(delta: Delta) -> None:
    """Check that what a delta adds is told by the delta alone.

    Raises:
        UnsupportedAdapterError: it depends on the base weight.
    """
    if needs_base(delta):
        raise UnsupportedAdapterError(
            f"{delta.family}: what it adds depends on the weight that it is added to. `lorry bake` adds it to a "
            "checkpoint, and `lorry extract` takes the difference from that as a LoRA."
        )


def dense_of(matrix: Matrix) -> Tensor:
    """Return a matrix in full, in the weight's shape."""
    if isinstance(matrix, Tensor):
        return matrix
    product = (matrix.up @ matrix.down.flatten(1)).mul_(matrix.scale)
    return product.reshape(matrix.up.shape[0], *matrix.down.shape[1:])


def shape_of(matrix: Matrix) -> tuple[int, ...]:
    """Return the shape of the weight that a matrix is for."""
    if isinstance(matrix, Tensor):
        return tuple(matrix.shape)
    return (matrix.up.shape[0], *matrix.down.shape[1:])


def decompose(matrix: Matrix, rank: int | None = None, seed: int = 0) -> Svd:
    """Return the decomposition of a matrix, or the first `rank` terms of it.

    Factors and full decompositions are exact. A full matrix of which few terms are wanted is sketched: see
    `sketch_svd`.
    """
    if isinstance(matrix, LowRank):
        svd = factor_svd(matrix, matrix.up.dtype)
    elif rank is not None and rank <= SKETCHED_BELOW * min(matrix.flatten(1).shape):
        return sketch_svd(matrix, rank, torch.Generator().manual_seed(seed), matrix.dtype)
    else:
        svd = dense_svd(matrix, matrix.dtype)
    return svd if rank is None else svd.cut(rank)


def spectrum_of(matrix: Matrix) -> Tensor:
    """Return all singular values of a matrix, falling."""
    if isinstance(matrix, LowRank):
        return factor_spectrum(matrix, matrix.up.dtype)
    return torch.linalg.svdvals(matrix.flatten(1) if matrix.ndim > 1 else matrix[:, None])


def norm_of(matrix: Matrix) -> float:
    """Return the Frobenius norm of a matrix, from thin products where it is of factors."""
    return max(inner(matrix, matrix), 0.0) ** 0.5


def inner(one: Matrix, two: Matrix) -> float:
    """Return the sum of the products of two matrices' entries, from thin products where one is of factors."""
    if isinstance(one, LowRank) and isinstance(two, LowRank):
        outs = one.up.double().T @ two.up.double()
        ins = one.down.flatten(1).double() @ two.down.flatten(1).double().T
        return float((outs * ins).sum()) * one.scale * two.scale
    if isinstance(one, LowRank):
        return inner(two, one)
    if isinstance(two, LowRank):
        down = two.down.flatten(1).double()
        return float((one.flatten(1).double() @ down.T * two.up.double()).sum()) * two.scale
    return float((one.double() * two.double()).sum())


def square_of(tensor: Tensor) -> float:
    """Return the sum of a tensor's squares, in float64 and without a copy of the whole in it."""
    return sum(float(block.double().square().sum()) for block in tensor.reshape(-1).split(BLOCK))


def distance(one: Matrix, two: Matrix) -> float:
    """Return the Frobenius norm of the difference of two matrices.

    Where both are of factors it is the root of a difference of squares, and right to 1e-7 of the larger norm.
    """
    if isinstance(one, LowRank) and isinstance(two, LowRank):
        return max(inner(one, one) - 2 * inner(one, two) + inner(two, two), 0.0) ** 0.5
    return float((dense_of(one).double() - dense_of(two).double()).norm())


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
