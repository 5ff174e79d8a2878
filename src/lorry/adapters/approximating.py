"""Full differences as deltas of fewer numbers: low-rank factors, or the product of two small matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from lorry.adapters.matrices import SKETCHED_BELOW, decompose, square_of
from lorry.adapters.svd import Svd, dense_svd, rank_for, sketch_svd
from lorry.algebra import LokrDelta

FIRST_RANK = 32
"""The rank of the first sketch on the way to a share of energy."""


def svd_to_energy(matrix: Tensor, energy: float, seed: int = 0) -> Svd:
    """Return the fewest terms of a full matrix that keep a share of its squared norm.

    Sketches of doubling rank are taken until one keeps the share, which is known without the other terms: all of them
    together have the squared norm of the matrix. Where that takes too many, the exact decomposition is made.
    """
    flat = matrix.flatten(1)
    wanted = energy * square_of(flat)
    rank = FIRST_RANK
    while rank <= SKETCHED_BELOW * min(flat.shape):
        svd = sketch_svd(flat, rank, torch.Generator().manual_seed(seed), flat.dtype)
        kept = svd.s.double().square().cumsum(0)
        if float(kept[-1]) >= wanted:
            return svd.cut(min(int((kept < wanted).sum()) + 1, rank))
        rank *= 2
    svd = dense_svd(flat, flat.dtype)
    return svd.cut(rank_for(svd.s, energy))


def nearest_kronecker(matrix: Tensor, factor: int, rank: int | None = None, seed: int = 0) -> LokrDelta:
    """Return the LoKr that is nearest to a full delta: `w1 x w2`, the second of factors of a rank on request.

    The entries are put in an order in which every Kronecker product is a matrix of rank 1, and the nearest one of that
    rank is taken.

    Args:
        matrix: (out, in), or (out, in, kh, kw).
        factor: `w1` has as many rows and columns as divide those of the matrix, up to this many.
        rank: of `w2`'s factors; it stays whole when None, or when its factors would have more numbers.
        seed: of the sketches.

    Source: Van Loan and Pitsianis, Approximation with Kronecker products (1993), section 3; the division as LyCORIS
    has it (arXiv:2309.14859, section 3).
    """
    out, into, *kernel = matrix.shape
    out1, in1 = divisor_up_to(out, factor), divisor_up_to(into, factor)
    out2, in2 = out // out1, into // in1
    rows = matrix.reshape(out1, out2, in1, in2, -1).permute(0, 2, 1, 3, 4).reshape(out1 * in1, -1)
    first = decompose(rows, 1, seed)
    root = first.s.sqrt()
    w1, w2 = (first.u * root).reshape(out1, in1), (root[:, None] * first.v).reshape(out2, in2, *kernel)
    columns = w2[0].numel()
    if rank is None or rank * (out2 + columns) >= out2 * columns:
        return LokrDelta(w1=w1, w2=w2)
    second = decompose(w2.flatten(1), rank, seed)
    pair = second.pair()
    return LokrDelta(
        w1=w1, w2_a=pair.up, w2_b=pair.down, alpha=float(second.rank), target_shape=tuple(matrix.shape)
    )


def divisor_up_to(size: int, limit: int) -> int:
    """Return the largest divisor of `size` that is not above `limit`."""
    return next(divisor for divisor in range(min(size, limit), 0, -1) if size % divisor == 0)
