"""The weighted sum of deltas, held against the sum of their full weights in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorry.adapters.adding import added, scaled
from lorry.algebra import (
    Delta,
    DoraDelta,
    FullDelta,
    LohaDelta,
    LokrDelta,
    LoraDelta,
    LoraXsDelta,
    PartsDelta,
)
from lorry.errors import ShapeMismatchError, UnsupportedAdapterError

F64 = torch.float64


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64)


def lora(rank: int, alpha: float | None = 3.0, out: int = 24, into: int = 36) -> LoraDelta:
    return LoraDelta(rand(rank, into), rand(out, rank), alpha=alpha)


FAMILIES: dict[str, Delta] = {
    "LoRA": lora(3),
    "LoRA without alpha": lora(2, None),
    "rank-stabilised": LoraDelta(rand(4, 36), rand(24, 4), alpha=2.0, rank_stabilised=True),
    "LoHa": LohaDelta(rand(24, 2), rand(2, 36), rand(24, 2), rand(2, 36), alpha=1.0),
    "LoKr": LokrDelta(w1=rand(2, 3), w2_a=rand(12, 2), w2_b=rand(2, 12), alpha=4.0),
    "LoKr of whole matrices": LokrDelta(w1=rand(2, 3), w2=rand(12, 12), full_scale=0.5),
    "full": FullDelta(rand(24, 36), 0.3),
    "beside a bias": PartsDelta(lora(2), FullDelta(rand(24), 0.7)),
}


def check_equal(got: Delta | None, expected: Tensor, bias: Tensor | None = None) -> None:
    assert got is not None
    torch.testing.assert_close(got.weight(dtype=F64), expected, rtol=0, atol=1e-11)
    part = got.part("bias")
    assert (part is None) == (bias is None)
    if part is not None and bias is not None:
        torch.testing.assert_close(part.weight(dtype=F64), bias, rtol=0, atol=1e-12)


def bias(delta: Delta) -> Tensor | None:
    part = delta.part("bias")
    return None if part is None else part.weight(dtype=F64)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("factor", [0.3, -1.5, 1.0])
def test_a_scaled_delta_keeps_its_family(name: str, factor: float) -> None:
    delta = FAMILIES[name]
    got = scaled(delta, factor)
    own = bias(delta)
    check_equal(got, factor * delta.weight(dtype=F64), None if own is None else factor * own)
    assert got.family == delta.family


def test_a_negative_factor_leaves_alpha_positive() -> None:
    got = scaled(lora(3), -2.0)
    assert isinstance(got, LoraDelta)
    assert got.alpha == 6.0


@pytest.mark.parametrize("one", FAMILIES)
@pytest.mark.parametrize("two", FAMILIES)
def test_the_sum_of_two_families_is_exact(one: str, two: str) -> None:
    first, second = FAMILIES[one], FAMILIES[two]
    own = [part for part in (bias(first), bias(second)) if part is not None]
    factors = [f for f, d in ((0.5, first), (-2.0, second)) if bias(d) is not None]
    expected = 0.5 * first.weight(dtype=F64) - 2.0 * second.weight(dtype=F64)
    sums = (
        sum((f * b for f, b in zip(factors, own, strict=True)), torch.zeros(24, dtype=F64)) if own else None
    )
    check_equal(added([(first, 0.5), (second, -2.0)], F64), expected, sums)


def test_ranks_are_joined_while_that_is_the_smaller_form() -> None:
    small = added([(lora(3), 1.0), (FAMILIES["LoHa"], 1.0)], F64)
    large = added([(lora(10), 1.0), (lora(10), 1.0)], F64)
    assert (small.family, small.rank) == ("LoRA", 7) if small else None
    assert isinstance(large, FullDelta)


def test_a_convolution_gives_a_loha_its_kernel() -> None:
    conv = LoraDelta(rand(2, 4, 3, 3), rand(24, 2, 1, 1))
    loha = FAMILIES["LoHa"]
    expected = loha.weight(dtype=F64).reshape(24, 4, 3, 3) + conv.weight(dtype=F64)
    check_equal(added([(loha, 1.0), (conv, 1.0)], F64), expected)


def test_factors_of_zero_leave_a_delta_out() -> None:
    only = lora(3)
    assert added([(only, 1.0), (FAMILIES["full"], 0.0)], F64) is only
    assert added([(only, 0.0)], F64) is None


def test_half_precision_is_computed_in_float32_and_rounded_once() -> None:
    one, two = [LoraDelta(rand(3, 36).half(), rand(24, 3).half(), alpha=2.0) for _ in range(2)]
    got = added([(one, 0.7), (two, 0.3)], torch.float16)
    assert isinstance(got, LoraDelta)
    expected = torch.cat([one.up.float() * (0.7 * 2 / 3), two.up.float() * (0.3 * 2 / 3)], dim=1).half()
    assert torch.equal(got.up, expected)
    assert torch.equal(got.down, torch.cat([one.down, two.down]))


def test_what_depends_on_the_base_weight_is_kept_alone_and_at_1_or_refused() -> None:
    dora = DoraDelta(lora(3), rand(24))
    assert added([(dora, 1.0)], F64) is dora
    with pytest.raises(UnsupportedAdapterError, match=r"DoRA: what it adds depends on the weight.*bake"):
        added([(dora, 1.0), (lora(3), 1.0)], F64)
    with pytest.raises(UnsupportedAdapterError, match="not proportional"):
        added([(dora, 0.5)], F64)


def test_deltas_of_different_shapes_are_refused() -> None:
    with pytest.raises(ShapeMismatchError, match=r"\(24, 36\) and of \(24, 30\)"):
        added([(lora(3), 1.0), (lora(3, into=30), 1.0)], F64)


def test_what_depends_on_the_weight_is_named_before_shapes_that_it_cannot_tell() -> None:
    xs = LoraXsDelta(rand(3, 3))
    with pytest.raises(UnsupportedAdapterError, match=r"LoRA-XS: what it adds depends on the weight.*bake"):
        added([(lora(2), 1.0), (xs, 1.0)], F64)
