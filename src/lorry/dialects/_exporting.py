"""What the writers of dialects share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lorry.adapters import Adapter, Entry
from lorry.algebra import LoraDelta, PartsDelta
from lorry.errors import UnsupportedAdapterError, some


@final
@dataclass(frozen=True, slots=True)
class Pair:
    """The tensors of a LoRA as files hold them."""

    down: Tensor
    """(rank, in), or (rank, in, kh, kw)."""
    up: Tensor
    """(out, rank), with as many axes as `down`."""
    mid: Tensor | None
    alpha: float | None
    """What makes the delta's scale when divided by the rank; None for scale 1."""


def get_pair(entry: Entry) -> Pair:
    """Return an entry's tensors as files hold them; rank-stabilised scales are put into alpha.

    Raises:
        UnsupportedAdapterError: it is no LoRA, or more than one.
    """
    delta = entry.delta
    if not isinstance(delta, LoraDelta):
        what = "a delta of a bias" if isinstance(delta, PartsDelta) else delta.family
        raise UnsupportedAdapterError(f"{entry.target}: {what} cannot be written in this dialect.")
    up = delta.up.reshape(*delta.up.shape[:2], *(1 for _ in delta.down.shape[2:]))
    alpha = delta.rank_scale * delta.rank if delta.rank_stabilised else delta.alpha
    return Pair(delta.down, up, delta.mid, alpha)


def reject_unknown(adapter: Adapter) -> None:
    """Raise when an adapter has keys that nobody understood, which a writer would lose.

    Raises:
        UnsupportedAdapterError: names the first of them.
    """
    if adapter.unknown:
        raise UnsupportedAdapterError(
            f"{adapter.source} has {len(adapter.unknown)} keys that are not understood and would be lost: "
            f"{some(adapter.unknown, 3)}."
        )
