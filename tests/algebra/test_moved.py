"""`MovedDelta`: two LoRAs, the one less the other, written again plainly in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from algebra.contract import SHAPES, STRENGTHS, check_close, check_contract, check_formula
from lorry.algebra import LoraDelta, MovedDelta
from models import random_delta


def moved(shape: tuple[int, ...], by: float = 1.0) -> MovedDelta:
    """A LoRA of rank 3 and alpha 2, `by` away from where it was."""
    start, step = (random_delta(shape, rank=3, alpha=2.0, seed=seed) for seed in (1, 2))
    assert isinstance(start, LoraDelta)
    tensors = {key: t + by * step.tensors()[key] for key, t in start.tensors().items()}
    return MovedDelta(start.with_tensors(tensors), start)


def plainly(delta: MovedDelta, strength: float = 1.0) -> Tensor:
    t = {key: tensor.double().flatten(1) for key, tensor in delta.tensors().items()}
    difference = t["up"] @ t["down"] - t["start_up"] @ t["start_down"]
    return (strength * (2.0 / 3) * difference).reshape(delta.shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strength", STRENGTHS)
def test_it_is_what_the_factors_are_less_what_they_were(shape: tuple[int, ...], strength: float) -> None:
    delta = moved(shape)
    check_formula(delta, torch.zeros(shape), plainly(delta, strength), strength)
    check_contract(delta, torch.zeros(shape))
    assert delta.rank == 6


@pytest.mark.parametrize("shape", SHAPES)
def test_its_factors_of_twice_the_rank_are_the_same_delta(shape: tuple[int, ...]) -> None:
    delta = moved(shape)
    pair = delta.low_rank()
    assert pair is not None
    assert pair.rank == 6
    product = pair.scale * (pair.up.double() @ pair.down.double().flatten(1))
    check_close(product.reshape(shape), plainly(delta), 1e-6)


def test_factors_that_have_hardly_moved_lose_little_when_they_are_rounded() -> None:
    delta = moved((64, 48), by=1e-3)
    pair = delta.low_rank()
    assert pair is not None
    up, down = pair.up.half().double(), pair.down.half().double()
    check_close(pair.scale * (up @ down), plainly(delta), 2e-3)


def test_it_is_exactly_nothing_before_it_moves() -> None:
    pair = moved((7, 5), by=0.0).low_rank()
    assert pair is not None
    assert not (pair.up @ pair.down).any()


def test_it_fits_a_weight_of_trailing_axes_of_1() -> None:
    delta = moved((7, 5))
    fitted = delta.fitted((7, 5, 1, 1))
    assert fitted is not None
    check_close(fitted.weight(dtype=torch.float64).flatten(1), plainly(delta), 1e-12)
    assert delta.fitted((7, 6)) is None
