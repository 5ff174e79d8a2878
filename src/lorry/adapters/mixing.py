"""Ways to mix several deltas for one weight that are not their sum: they thin out, vote, or step aside.

All but `orthogonal` look at single numbers of the full matrices, and leave matrices of full rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor

from lorry.adapters.adding import sum_of
from lorry.adapters.matrices import Matrix, decompose, dense_of
from lorry.algebra import LowRank

TOLERANCE = 1e-6
"""Singular values under this share of the largest are taken for rounding, and their directions for nobody's."""


class Method(StrEnum):
    """How deltas for one weight become one."""

    SUM = "sum"
    TIES = "ties"
    DARE = "dare"
    DARE_TIES = "dare-ties"
    MAGNITUDE = "magnitude"
    ORTHOGONAL = "orthogonal"


def mix(
    method: Method,
    matrices: Sequence[Matrix],
    factors: Sequence[float],
    density: float,
    generator: torch.Generator,
) -> Matrix:
    """Return deltas mixed by a method, each at its factor.

    Args:
        method: the sum; `ties` (trim, elect a sign, mean of those that agree); `dare` (drop at random, rescale, sum);
            `dare-ties` (drop at random, then vote); `magnitude` (keep the largest, sum); `orthogonal` (each leaves out
            what lies in the rows and columns of those before it, sum).
        matrices: of one shape.
        factors: one for each.
        density: the share of numbers to keep, for those methods that drop some.
        generator: of the numbers that `dare` drops by.

    Source: Yadav et al., TIES-Merging (arXiv:2306.01708), section 4; Yu et al., DARE (arXiv:2311.03099), section 3.
    """
    if method is Method.SUM:
        return sum_of(list(zip(matrices, factors, strict=True)))
    if method is Method.ORTHOGONAL:
        return sum_of(list(zip(orthogonalised(matrices), factors, strict=True)))
    full = [dense_of(matrix) for matrix in matrices]
    if method in (Method.DARE, Method.DARE_TIES):
        full = [dropped(tensor, density, generator) for tensor in full]
    else:
        full = [largest(tensor, density) for tensor in full]
    if method in (Method.TIES, Method.DARE_TIES):
        return _voted(torch.stack(full), factors)
    return sum_of(list(zip(full, factors, strict=True)))


def largest(tensor: Tensor, density: float) -> Tensor:
    """Return a tensor with only the share `density` of its numbers that are largest in magnitude, others 0."""
    keep = int(density * tensor.numel())
    if keep >= tensor.numel():
        return tensor
    kept = torch.zeros_like(tensor).flatten()
    if keep:
        index = tensor.abs().flatten().topk(keep).indices
        kept[index] = tensor.flatten()[index]
    return kept.view_as(tensor)


def dropped(tensor: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Return a tensor with each number kept with probability `density` and divided by it, others 0."""
    if density >= 1:
        return tensor
    kept = torch.bernoulli(torch.full_like(tensor, density), generator=generator)
    return tensor * kept / density


def orthogonalised(matrices: Sequence[Matrix]) -> list[Matrix]:
    """Return matrices of which each has nothing in the column space and the row space of those before it.

    `(I - U U^T) D (I - V^T V)`, with U and V the spaces of all earlier ones: the first stays as it is, the others lose
    what they would have added to the same outputs or read from the same inputs. No rank grows.
    """
    done: list[Matrix] = [matrices[0]]
    for matrix in matrices[1:]:
        spaces = decompose(sum_of([(earlier, 1.0) for earlier in done]))
        count = int((spaces.s > TOLERANCE * spaces.s[:1]).sum())
        u, v = spaces.u[:, :count], spaces.v[:count]
        if isinstance(matrix, LowRank):
            down = matrix.down.flatten(1)
            down = (down - down @ v.T @ v).reshape(matrix.down.shape)
            done.append(LowRank(down, matrix.up - u @ (u.T @ matrix.up), matrix.scale))
        else:
            flat = matrix.flatten(1)
            flat = flat - u @ (u.T @ flat)
            done.append((flat - flat @ v.T @ v).reshape(matrix.shape))
    return done


def _voted(stacked: Tensor, factors: Sequence[float]) -> Tensor:
    """The mean, at their factors, of those numbers that have the sign of the sum of all."""
    sign = torch.where(stacked.sum(0) >= 0, 1.0, -1.0).to(stacked.dtype)
    agree = stacked.sign() == sign
    weights = torch.tensor(factors, dtype=stacked.dtype, device=stacked.device).view(
        -1, *(1 for _ in stacked.shape[1:])
    )
    return (stacked * weights * agree).sum(0) / agree.sum(0).clamp(min=1)
