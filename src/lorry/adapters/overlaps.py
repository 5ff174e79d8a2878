"""How much two deltas for one weight have in common: what they read, what they write, and in which direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lorry.adapters.approximating import svd_to_energy
from lorry.adapters.matrices import Matrix, decompose
from lorry.adapters.mixing import TOLERANCE
from lorry.adapters.svd import Svd

FULL_ENERGY = 0.99
"""The share of a full difference's energy that its subspaces are taken from."""


@final
@dataclass(frozen=True, slots=True)
class Overlap:
    """What two deltas have in common. All but the norms and the inner product are between 0 and 1."""

    norms: tuple[float, float]
    """Frobenius norms."""
    inner: float
    """The sum of the products of their entries."""
    reads: float
    """The share of the energy of each that lies in the other's row space (its inputs), the mean of both."""
    writes: float
    """The same for the column spaces (outputs)."""
    shared: float
    """The same for both at once: what reads and writes where the other does."""
    chance: float
    """What `shared` would be for random subspaces of these ranks."""
    angles_in: tuple[float, ...]
    """The principal angles between the row spaces in degrees, rising."""
    angles_out: tuple[float, ...]
    """The principal angles between the column spaces in degrees, rising."""

    @property
    def cosine(self) -> float:
        """The cosine of the angle between the two, as vectors of all their entries: -1 to 1."""
        size = self.norms[0] * self.norms[1]
        return self.inner / size if size else 0.0


def overlap(one: Matrix, two: Matrix) -> Overlap:
    """Return what two deltas have in common, from their decompositions: no full matrix is made of factors.

    Source: Bjorck and Golub, Numerical methods for computing angles between linear subspaces (1973), for the angles.
    """
    a, b = _subspaces(one), _subspaces(two)
    outs, ins = a.u.T @ b.u, a.v @ b.v.T
    energy_a, energy_b = a.s.square(), b.s.square()
    total_a, total_b = float(energy_a.sum()), float(energy_b.sum())
    inner = float((a.s[:, None] * ins * b.s * outs).sum())

    def mean(of_a: Tensor, of_b: Tensor) -> float:
        shares = [float(of_a) / total_a if total_a else 0.0, float(of_b) / total_b if total_b else 0.0]
        return min(sum(shares) / 2, 1.0)

    sizes = (a.u.shape[0], a.v.shape[1])
    chances = [(svd.rank / sizes[0]) * (svd.rank / sizes[1]) for svd in (a, b)]
    return Overlap(
        norms=(total_a**0.5, total_b**0.5),
        inner=inner,
        reads=mean((energy_a * ins.square().sum(1)).sum(), (energy_b * ins.square().sum(0)).sum()),
        writes=mean((energy_a * outs.square().sum(1)).sum(), (energy_b * outs.square().sum(0)).sum()),
        shared=mean((outs.T @ (a.s[:, None] * ins)).square().sum(), ((outs * b.s) @ ins.T).square().sum()),
        chance=min(sum(chances) / 2, 1.0),
        angles_in=_angles(ins),
        angles_out=_angles(outs),
    )


def _subspaces(matrix: Matrix) -> Svd:
    """Return the terms of a matrix that are more than rounding."""
    if isinstance(matrix, Tensor):
        return svd_to_energy(matrix.double(), FULL_ENERGY)
    svd = decompose(matrix)
    svd = Svd(svd.u.double(), svd.s.double(), svd.v.double())
    return svd.cut(max(1, int((svd.s > TOLERANCE * svd.s[0]).sum())))


def _angles(products: Tensor) -> tuple[float, ...]:
    cosines = torch.linalg.svdvals(products).clamp(0, 1)
    return tuple(torch.rad2deg(torch.acos(cosines)).tolist())
