"""Cut deltas down to a rank: which rank each gets, and the cut itself."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from lorry.adapters.adding import delta_of
from lorry.adapters.matrices import Matrix, decompose, matrix_of, needs_base, shape_of
from lorry.adapters.svd import rank_for
from lorry.algebra import Delta, DoraDelta, PartsDelta

Key = TypeVar("Key")


def find_core(delta: Delta) -> Delta | None:
    """Return the delta that a rank can be cut from: without its bias, and from within a DoRA; None where there is none.

    The other families that depend on the base weight have none, and neither have norms and biases.
    """
    weight = delta.part("weight")
    if isinstance(weight, DoraDelta):
        return find_core(weight.inner)
    if weight is None or needs_base(weight) or len(weight.shape) < 2:
        return None
    return weight


def with_core(delta: Delta, core: Delta) -> Delta:
    """Return a delta with another one in the place of what `find_core` finds."""
    if isinstance(delta, PartsDelta):
        return PartsDelta(
            core if delta.on_weight is None else with_core(delta.on_weight, core), delta.on_bias
        )
    return replace(delta, inner=with_core(delta.inner, core)) if isinstance(delta, DoraDelta) else core


def find_reducible(delta: Delta, dtype: torch.dtype = torch.float32) -> Matrix | None:
    """Return the matrix of `find_core`, or None where there is none."""
    core = find_core(delta)
    return None if core is None else matrix_of(core, dtype)


def reduced(delta: Delta, rank: int, dtype: torch.dtype | None = None, seed: int = 0) -> Delta:
    """Return a delta cut down to a rank, as a LoRA of scale 1; what has no rank to cut stays as it is.

    Args:
        delta: of any family. A delta whose rank is no larger is kept as it is.
        rank: to keep.
        dtype: of the new factors; that of the delta's tensors when None.
        seed: of the sketch, where a full difference is cut.
    """
    core = find_core(delta)
    if core is None or (core.family == "LoRA" and (core.rank or 0) <= rank):
        return delta
    matrix = matrix_of(core)
    dtype = dtype or next(iter(core.tensors().values())).dtype
    return with_core(delta, delta_of(decompose(matrix, rank, seed).pair(shape_of(matrix)[1:]), dtype))


def ranks_by_energy(spectra: Mapping[Key, Tensor], share: float) -> dict[Key, int]:
    """Return the least rank of each delta that keeps a share of its squared norm."""
    return {key: rank_for(spectrum, share) for key, spectrum in spectra.items()}


def ranks_by_size(spectra: Mapping[Key, Tensor], costs: Mapping[Key, int], budget: int) -> dict[Key, int]:
    """Return the ranks that keep the most energy of all deltas together within a budget.

    One more rank of a delta costs the same each time and keeps less each time, so that taking the best bargain again
    and again is the optimum, up to the last rank that does not fit. Every delta gets 1 at least.

    Args:
        spectra: singular values, falling, by delta.
        costs: what one rank of each costs.
        budget: what all of them may cost, in the unit of `costs`.
    """
    ranks = dict.fromkeys(spectra, 1)
    left = budget - sum(costs[key] for key in spectra)
    keys: Sequence[Key] = list(spectra)

    def bargain(number: int) -> tuple[float, int]:
        key = keys[number]
        return (-(float(spectra[key][ranks[key]]) ** 2) / costs[key], number)

    heap = [bargain(number) for number, key in enumerate(keys) if len(spectra[key]) > 1]
    heapq.heapify(heap)
    while heap:
        number = heapq.heappop(heap)[1]
        key = keys[number]
        if costs[key] > left:
            continue
        left -= costs[key]
        ranks[key] += 1
        if ranks[key] < len(spectra[key]):
            heapq.heappush(heap, bargain(number))
    return ranks
