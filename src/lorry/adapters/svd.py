"""The singular value decomposition of deltas, from their factors where they have such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lorry.algebra import LowRank

OVERSAMPLING = 16
POWER_PASSES = 3


@final
@dataclass(frozen=True, eq=False, slots=True)
class Svd:
    """`u @ diag(s) @ v` of a delta as a matrix (out, columns), a kernel's axes among the columns."""

    u: Tensor
    """(out, rank), orthonormal columns."""
    s: Tensor
    """(rank), falling, none negative."""
    v: Tensor
    """(rank, columns), orthonormal rows."""

    @property
    def rank(self) -> int:
        return self.s.shape[0]

    def cut(self, rank: int) -> Svd:
        """The best approximation of `rank` in the Frobenius and the spectral norm (Eckart and Young, 1936)."""
        return Svd(self.u[:, :rank], self.s[:rank], self.v[:rank])

    def pair(self, columns: Sequence[int] | None = None) -> LowRank:
        """The two factors `sqrt(s) v` and `u sqrt(s)`, of like size, so that half precision serves both alike.

        Args:
            columns: the axes to give `down` after the rank, such as (in, kh, kw); (columns,) when None.
        """
        root = self.s.sqrt()
        down = root[:, None] * self.v
        return LowRank(down.reshape(self.rank, *(columns or down.shape[1:])), self.u * root, 1.0)


def joined(pairs: Sequence[LowRank], weights: Sequence[float] | None = None) -> LowRank:
    """Return the weighted sum of deltas, exactly: the factors side by side along the rank, their scales in `up`.

    Args:
        pairs: at least one, all of one shape, and of a dtype that can hold the scaled factors.
        weights: a factor for each; 1.0 when None.

    Returns:
        One pair of scale 1, its rank the sum of theirs. It shares no memory with them.
    """
    weights = [1.0] * len(pairs) if weights is None else weights
    ups = [pair.up * (pair.scale * weight) for pair, weight in zip(pairs, weights, strict=True)]
    return LowRank(torch.cat([pair.down for pair in pairs]), torch.cat(ups, dim=1), 1.0)


def factor_svd(pair: LowRank, dtype: torch.dtype = torch.float32) -> Svd:
    """Return the decomposition of `scale * up @ down` without ever making that product.

    `up = Q1 R1` and `down^T = Q2 R2`, so that the small matrix `scale * R1 R2^T` has the singular values of the whole.

    Args:
        pair: the factors; a convolution's kernel counts as columns.
        dtype: to compute in and return. In float32 the singular values are within 1e-6 of the largest.

    Source: Golub and Van Loan, Matrix Computations, 4th edition, section 5.2 (QR) and 2.4 (SVD).
    """
    q1, r1 = torch.linalg.qr(pair.up.to(dtype))
    q2, r2 = torch.linalg.qr(pair.down.flatten(1).to(dtype).T)
    u, s, v = torch.linalg.svd((pair.scale * r1) @ r2.T, full_matrices=False)
    return Svd(q1 @ u, s, v @ q2.T)


def factor_spectrum(pair: LowRank, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the singular values that `factor_svd` gives, at less than half of its cost."""
    _, r1 = torch.linalg.qr(pair.up.to(dtype), mode="r")
    _, r2 = torch.linalg.qr(pair.down.flatten(1).to(dtype).T, mode="r")
    return torch.linalg.svdvals((pair.scale * r1) @ r2.T)


def dense_svd(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Svd:
    """Return the decomposition of a full delta (out, …), exactly."""
    return Svd(*torch.linalg.svd(matrix.flatten(1).to(dtype), full_matrices=False))


def sketch_svd(
    matrix: Tensor,
    rank: int,
    generator: torch.Generator | None,
    dtype: torch.dtype = torch.float32,
    passes: int = POWER_PASSES,
) -> Svd:
    """Return the first `rank` terms of a full matrix's decomposition, by a random sketch with power passes.

    The terms span nearly the best subspace of that rank: the error is that of `dense_svd(matrix).cut(rank)` times a
    factor near 1, at the cost of a few products with thin matrices.

    Args:
        matrix: (out, …).
        rank: how many terms.
        generator: of the sketch's random numbers; the same seed gives the same result. torch's own when None.
        dtype: to compute in and return.
        passes: how often the sketch is sharpened.

    Source: Halko, Martinsson and Tropp, Finding structure with randomness (arXiv:0909.4061), algorithms 4.4 and 5.1.
    """
    matrix = matrix.flatten(1).to(dtype)
    width = min(rank + OVERSAMPLING, *matrix.shape)
    sketch = torch.randn(matrix.shape[1], width, generator=generator, dtype=dtype, device="cpu").to(
        matrix.device
    )
    basis, _ = torch.linalg.qr(matrix @ sketch)
    for _ in range(passes):
        other, _ = torch.linalg.qr(matrix.T @ basis)
        basis, _ = torch.linalg.qr(matrix @ other)
    u, s, v = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return Svd(basis @ u, s, v).cut(rank)


def energies(spectrum: Tensor) -> Tensor:
    """Return the share of the squared Frobenius norm that each rank keeps: (rank), rising to 1.

    A delta of zeros keeps everything at any rank.
    """
    squares = spectrum.double().square()
    total = squares.sum()
    return torch.ones_like(squares) if total == 0 else squares.cumsum(0) / total


def rank_for(spectrum: Tensor, energy: float) -> int:
    """Return the least rank, at least 1, that keeps a share `energy` of the squared Frobenius norm."""
    kept = energies(spectrum)
    # A sum of rounded numbers may end a hair under the share that all of them are.
    return min(int((kept < energy - 1e-12).sum()) + 1, len(kept))
