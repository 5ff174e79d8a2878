"""Factors that begin in the base weight itself: its largest singular triples, or the first columns of its QR."""

from __future__ import annotations

import torch
from torch import Tensor


def principal_factors(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return (up, down) with `scale * up @ down` the best approximation of a matrix by that rank.

    Both factors have the square roots of the singular values.

    Source: Meng et al., PiSSA (arXiv:2404.02948), section 3, equations 2 and 3.
    """
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    return _shared_out(u, s, v, rank, scale)


def near_principal_factors(
    weight: Tensor, rank: int, scale: float, iterations: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Return nearly the same much faster, for large matrices and small ranks: by iterations over a random subspace.

    Source: Halko, Martinsson and Tropp (arXiv:0909.4061), algorithm 4.4 and section 5.1; PiSSA, section 4 ("fast
    singular value decomposition").
    """
    begin = torch.randn(weight.shape[1], rank, generator=generator).to(weight)
    basis = torch.linalg.qr(weight @ begin).Q
    for _ in range(iterations):
        basis = torch.linalg.qr(weight @ torch.linalg.qr(weight.T @ basis).Q).Q
    u, s, v = torch.linalg.svd(basis.T @ weight, full_matrices=False)
    return _shared_out(basis @ u, s, v, rank, scale)


def orthonormal_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return (up, down) of the QR decomposition of a matrix, cut to a rank: `up` has orthonormal columns.

    Source: Büyükakyüz, OLoRA (arXiv:2406.01775), section 3.
    """
    q, r = torch.linalg.qr(weight)
    return q[:, :rank], r[:rank]


def _shared_out(u: Tensor, s: Tensor, v: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    roots = (s[:rank] / scale).sqrt()
    return u[:, :rank] * roots, roots[:, None] * v[:rank]
