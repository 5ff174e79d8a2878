"""`SparseDelta` against its formula, written again one number at a time in float64."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from algebra.contract import SHAPES, STRENGTHS, check_contract, check_formula
from lorry.algebra import LoraDelta, SparseDelta
from lorry.errors import FormatError

ALPHA, RANK, COUNT = 5.0, 2, 7


def made(shape: tuple[int, ...], **more: object) -> SparseDelta:
    down, up = torch.randn(RANK, *shape[1:]), torch.randn(shape[0], RANK)
    inner = LoraDelta(down, up, None, ALPHA)
    cells = torch.randperm(torch.Size(shape).numel())[:COUNT]
    columns = torch.Size(shape[1:]).numel()
    indices = torch.stack([cells // columns, cells % columns])
    return SparseDelta(**{"inner": inner, "values": torch.randn(COUNT), "indices": indices, **more})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strength", STRENGTHS)
def test_each_value_is_added_at_its_place_with_the_scale(shape: tuple[int, ...], strength: float) -> None:
    delta, base = made(shape), torch.randn(shape)
    expected = delta.inner.weight(base, torch.float64).flatten(1)
    for value, row, column in zip(delta.values, *delta.indices, strict=True):
        expected[row, column] += value.double() * ALPHA / RANK
    check_formula(delta, base, expected.reshape(shape) * strength, strength)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_keeps_what_every_family_promises(shape: tuple[int, ...]) -> None:
    check_contract(made(shape), torch.randn(shape))
    assert made(shape).low_rank() is None
    assert made(shape).fitted((shape[0] + 1, *shape[1:])) is None


def test_it_takes_axes_of_1_as_its_inner_delta_does() -> None:
    fitted = made((12, 8)).fitted((12, 8, 1, 1))
    assert fitted is not None
    assert fitted.weight().shape == (12, 8, 1, 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"values": torch.randn(3)}, "a row and a column for each value"),
        ({"indices": torch.full((2, COUNT), 8)}, "lies outside of"),
        ({"indices": torch.full((2, COUNT), -1)}, "lies outside of"),
    ],
)
def test_indices_that_do_not_fit_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        made((12, 8), **wrong)


def test_indices_on_a_gpu_are_looked_at_there() -> None:
    with FakeTensorMode():
        down, up, values = (torch.zeros(*shape, device="cuda") for shape in ((2, 8), (12, 2), (COUNT,)))
        indices = torch.zeros(2, COUNT, dtype=torch.long, device="cuda")
        with pytest.raises(DataDependentOutputException):  # by then it asks for the answer, which no fake has
            SparseDelta(LoraDelta(down, up, None, ALPHA), values, indices)
