"""Factors that begin in the base weight itself: its largest singular triples, or the first columns of its QR."""

from __future__ import annotations

import torch
from torch import Tensor

from lorry.adapters import dense_svd, sketch_svd


def principal_factors(
    weight: Tensor, rank: int, scale: float, iterations: int = 0, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Return (up, down) with `scale * up @ down` the best approximation of a matrix by that rank.

    Both factors have the square roots of the singular values.

    Args:
        weight: (out, in).
        rank: of the approximation.
        scale: what is on the product of the factors.
        iterations: of a random sketch, which comes near the exact decomposition and is much faster for large matrices
            and small ranks; 0 is the exact one.
        generator: of the sketch.

    Source: Meng et al., PiSSA (arXiv:2404.02948), section 3, equations 2 and 3, and section 4 ("fast singular value
    decomposition").
    """
    scaled = weight / scale
    if iterations:
        svd = sketch_svd(scaled, rank, generator, weight.dtype, iterations)
    else:
        svd = dense_svd(scaled, weight.dtype).cut(rank)
    pair = svd.pair()
    return pair.up, pair.down


def orthonormal_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return (up, down) of the QR decomposition of a matrix, cut to a rank: `up` has orthonormal columns.

    Source: Büyükakyüz, OLoRA (arXiv:2406.01775), section 3.
    """
    q, r = torch.linalg.qr(weight)
    return q[:, :rank], r[:rank]
