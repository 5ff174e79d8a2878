"""Every family that has factors without the base weight gives them, and their product is its delta."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorry.algebra import Delta, FullDelta, LohaDelta, LokrDelta, LoraDelta, PartsDelta


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def loha(core: bool, rank: tuple[int, int] = (3, 2)) -> LohaDelta:
    one, two = rank
    if core:
        a, b = (rand(one, 8), rand(one, 5)), (rand(two, 8), rand(two, 5))
        return LohaDelta(*a, *b, t1=rand(one, one, 3, 3), t2=rand(two, two, 3, 3), alpha=2.0)
    return LohaDelta(
        rand(8, one), rand(one, 45), rand(8, two), rand(two, 45), alpha=2.0, target_shape=(8, 5, 3, 3)
    )


CASES: dict[str, tuple[Delta, int]] = {
    "LoRA": (LoraDelta(rand(3, 9), rand(7, 3), alpha=1.5), 3),
    "LoCon with a core": (LoraDelta(rand(3, 5, 1, 1), rand(8, 3, 1, 1), rand(3, 3, 3, 3), alpha=1.5), 3),
    "LoHa": (loha(core=False), 6),
    "LoHa with cores": (loha(core=True), 6),
    "LoKr of whole matrices": (LokrDelta(w1=rand(2, 3), w2=rand(8, 4), full_scale=0.5), 8),
    "LoKr of a tall and a wide one": (LokrDelta(w1=rand(4, 2), w2=rand(3, 8)), 6),
    "LoKr, w2 of factors": (LokrDelta(w1=rand(2, 3), w2_a=rand(8, 2), w2_b=rand(2, 6), alpha=3.0), 4),
    "LoKr, both of factors": (
        LokrDelta(w1_a=rand(6, 1), w1_b=rand(1, 5), w2_a=rand(8, 2), w2_b=rand(2, 6), alpha=3.0),
        2,
    ),
    "LoKr of a kernel": (LokrDelta(w1=rand(2, 2), w2=rand(3, 4, 3, 3)), 6),
    "LoKr with a core": (
        LokrDelta(w1=rand(2, 2), w2_a=rand(3, 4), w2_b=rand(3, 5), t2=rand(3, 3, 3, 3), alpha=1.0),
        6,
    ),
    "beside a bias": (PartsDelta(LoraDelta(rand(3, 9), rand(7, 3)), FullDelta(rand(7))), 3),
}


@pytest.mark.parametrize("name", CASES)
def test_the_factors_multiply_to_the_delta(name: str) -> None:
    delta, rank = CASES[name]
    pair = delta.exact_factors(torch.float64)
    assert pair is not None
    assert pair.rank == rank
    assert pair.down.shape[1:] == delta.shape[1:]
    product = (pair.scale * pair.up @ pair.down.flatten(1)).reshape(delta.shape)
    torch.testing.assert_close(product, delta.weight(dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_full_difference_has_none() -> None:
    assert FullDelta(rand(3, 4)).exact_factors() is None
