"""`DoraDelta` against its formula, written again in float64, one row or column at a time."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch import Tensor

from algebra.contract import (
    SHAPES,
    STRENGTHS,
    check_close,
    check_contract,
    check_fitting,
    check_formula,
    needs_its_base,
)
from lorry.algebra import Delta, LoraDelta
from lorry.algebra.dora import DoraDelta
from lorry.algebra.loha import LohaDelta
from lorry.algebra.lokr import LokrDelta
from lorry.errors import FormatError

INNER = ["LoRA", "LoHa", "LoKr"]


def inner_of(family: str, shape: tuple[int, ...], settled: bool = True) -> Delta:
    count, target = prod(shape[1:]), shape if settled else None
    if family == "LoRA":
        up = torch.randn(shape[0], 3, *([1] * len(shape[2:])))
        return LoraDelta(torch.randn(3, *shape[1:]), up, alpha=2.0)
    if family == "LoHa":
        a, b, c, d = (torch.randn(size) for size in [(shape[0], 3), (3, count)] * 2)
        return LohaDelta(a, b, c, d, alpha=2.0, target_shape=target)
    a, b = torch.randn(shape[0] // 2, 3), torch.randn(3, count // 4)
    return LokrDelta(torch.randn(2, 4), w2_a=a, w2_b=b, alpha=2.0, target_shape=target)


def made(family: str, shape: tuple[int, ...], on_input: bool, settled: bool = True) -> DoraDelta:
    axes = (1, shape[1]) if on_input else (shape[0], 1)
    return DoraDelta(
        inner_of(family, shape, settled), 1 + torch.rand(*axes, *([1] * len(shape[2:]))), on_input
    )


def slow_weight(delta: DoraDelta, base: Tensor, strength: float) -> Tensor:
    fitted = delta.inner.fitted(tuple(base.shape))
    assert fitted is not None
    turned = base.double() + fitted.weight(base, torch.float64)
    magnitude, full = delta.magnitude.double().flatten(), torch.zeros(base.shape, dtype=torch.float64)
    for index in range(base.shape[delta.on_input]):
        at = (slice(None), index) if delta.on_input else (index,)
        length = sum(float(number) ** 2 for number in turned[at].flatten()) ** 0.5
        full[at] = magnitude[index] * turned[at] / length
    return strength * (full - base.double())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", INNER)
@pytest.mark.parametrize("on_input", [False, True])
def test_the_magnitude_sets_the_length_of_rows_or_columns(
    shape: tuple[int, ...], family: str, on_input: bool
) -> None:
    delta, base = made(family, shape, on_input), torch.randn(shape)
    check_contract(delta, base)
    for strength in STRENGTHS:
        check_formula(delta, base, slow_weight(delta, base, strength), strength)


def test_a_small_change_keeps_its_digits() -> None:
    base, delta = torch.randn(64, 256), LoraDelta(torch.randn(3, 256) / 300, torch.randn(64, 3) / 300)
    dora = DoraDelta(delta, (base + delta.weight()).norm(dim=1) * (1 + torch.randn(64) * 1e-4))
    expected = slow_weight(dora, base, 1.0)
    check_close(dora.weight(base, torch.float64), expected, 1e-10)
    check_close(dora.weight(base), expected, 1e-6)


@pytest.mark.parametrize("axes", [(12,), (12, 1), (1, 12, 1, 1)], ids=str)
def test_axes_of_one_around_the_magnitude_change_nothing(axes: tuple[int, ...]) -> None:
    inner, magnitude, base = inner_of("LoRA", (12, 8, 3, 3)), 1 + torch.rand(12), torch.randn(12, 8, 3, 3)
    plain = DoraDelta(inner, magnitude).weight(base)
    assert torch.equal(DoraDelta(inner, magnitude.reshape(axes)).weight(base), plain)


def test_a_row_of_zeros_stays_zero() -> None:
    base, delta = torch.randn(12, 8), made("LoRA", (12, 8), False)
    base[3] = -delta.inner.weight()[3]
    assert torch.equal((base + delta.weight(base))[3], torch.zeros(8))
    assert delta.weight(base).isfinite().all()


@pytest.mark.parametrize("on_input", [False, True])
def test_a_row_of_zeros_has_finite_gradients(on_input: bool) -> None:
    base, up = torch.randn(6, 8), torch.zeros(6, 2)
    base[0], base[:, 0] = 0, 0
    lora = LoraDelta(torch.randn(2, 8), up.requires_grad_())
    magnitude = base.norm(dim=int(not on_input)).requires_grad_()
    DoraDelta(lora, magnitude, on_input).weight(base).square().sum().backward()
    for grad in (up.grad, magnitude.grad):
        assert grad is not None
        assert grad.isfinite().all()


def test_what_it_says_of_itself() -> None:
    delta = made("LoHa", (12, 8, 3, 3), False)
    assert (delta.shape, delta.rank, delta.rank_scale, delta.low_rank()) == ((12, 8, 3, 3), 3, 2 / 3, None)
    assert delta.tensors().keys() == {"w1_a", "w1_b", "w2_a", "w2_b", "magnitude"}
    needs_its_base(delta, (8, 12, 3, 3))


@pytest.mark.parametrize("family", ["LoHa", "LoKr"])
@pytest.mark.parametrize("on_input", [False, True])
def test_the_weight_settles_how_the_inner_columns_divide(family: str, on_input: bool) -> None:
    loose, base = made(family, (12, 8, 3, 3), on_input, settled=False), torch.randn(12, 8, 3, 3)
    fitted = loose.fitted((12, 8, 3, 3))
    assert fitted is not None
    check_formula(fitted, base, slow_weight(loose, base, 1.0))
    other = loose.fitted((12, 18, 2, 2))
    assert (other is None) == on_input, "8 magnitudes are not for 18 columns"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("on_input", [False, True])
def test_it_fits_its_own_shape_only(shape: tuple[int, ...], on_input: bool) -> None:
    refused = [(shape[1], shape[0], *shape[2:]), (shape[0], 7, *shape[2:]), (*shape[:2], 5, 5)]
    check_fitting(made("LoRA", shape, on_input), torch.randn(shape), refused)


def test_a_magnitude_of_another_length_is_refused() -> None:
    with pytest.raises(
        FormatError, match=r"a DoRA over LoRA of magnitude \(11,\) .* expected 12 numbers for the rows"
    ):
        DoraDelta(inner_of("LoRA", (12, 8)), torch.ones(11))
    with pytest.raises(FormatError, match="expected 8 numbers for the columns"):
        DoraDelta(inner_of("LoRA", (12, 8)), torch.ones(12), on_input=True)
    with pytest.raises(FormatError, match="one axis longer than 1"):
        DoraDelta(inner_of("LoRA", (12, 8)), torch.ones(4, 3))
