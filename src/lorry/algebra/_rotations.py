"""Rotations by blocks, for the families that turn a weight instead of adding to it.

A rotation is handled as the step R - I, so that one near the identity keeps its digits.
"""

from __future__ import annotations

import torch
from torch import Tensor


def skew_of(packed: Tensor, size: int) -> Tensor:
    """Unpack skew-symmetric blocks from the rows of their upper triangles, (blocks, size * (size - 1) / 2)."""
    rows, columns = torch.triu_indices(size, size, 1, device=packed.device)
    skew = packed.new_zeros(packed.shape[0], size, size)
    skew[:, rows, columns] = packed
    return skew - skew.mT


def at_most(norm: Tensor, limit: float) -> Tensor:
    """Return the factor that brings `norm` down to `limit`, 1 where it is within."""
    return torch.where(norm > limit, limit / norm, 1)


def cayley_step(skew: Tensor) -> Tensor:
    """Compute R - I of the Cayley transform R = (I + Q)(I - Q)^-1, which is 2 (I - Q)^-1 Q.

    Source: Qiu et al., Controlling Text-to-Image Diffusion by Orthogonal Finetuning (arXiv:2306.07280), section 3.
    """
    wide = skew if skew.device.type == "mps" else skew.double()  # MPS has no float64
    identity = torch.eye(skew.shape[-1], dtype=wide.dtype, device=skew.device)
    return torch.linalg.solve(identity - wide, 2 * wide).to(skew.dtype)


def neumann_step(skew: Tensor, terms: int) -> Tensor:
    """Compute R - I of the series that PEFT puts in place of the Cayley transform, 2Q + 2Q^2 + ... + Q^(terms - 1).

    The last power counts once. PEFT gives 3 terms the powers of 4, and 2 terms only 2Q.

    Source: Qiu et al., Orthogonal Finetuning Made Scalable (arXiv:2506.19847), the Cayley-Neumann parameterization;
    peft 0.21.2, `tuners/oft/layer.py`, for which powers a number of terms means.
    """
    if terms < 3:
        return 2 * skew * (terms - 1)
    step = skew
    for _ in range(max(terms, 4) - 2):
        step = skew @ step + 2 * skew
    return step


def turned(step: Tensor, rows: Tensor) -> Tensor:
    """Multiply blocks of (R - I) onto blocks of the rows of a matrix; one block alone is used for all of them."""
    return (step @ rows.unflatten(0, (-1, step.shape[-1]))).flatten(0, 1)


def rescaled(delta: Tensor, weight: Tensor, rescale: Tensor | None, strength: float) -> Tensor:
    """Return the delta to `weight` when each row of (weight + delta) is multiplied by 1 + strength (rescale - 1)."""
    if rescale is None:
        return delta
    more = strength * (rescale.to(delta).flatten()[:, None] - 1)
    return delta + more * (weight + delta)
