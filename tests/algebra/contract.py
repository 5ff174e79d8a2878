"""What every family is held to, beside its own formula."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from lorry.algebra import Delta

LINEAR, POINT, SQUARE = (12, 8), (12, 8, 1, 1), (12, 8, 3, 3)
SHAPES = [LINEAR, POINT, SQUARE, (8, 12), (8, 4, 1, 3)]
STRENGTHS = [0.0, 0.5, 1.0, -0.3]


def check_close(got: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    """Raise where the largest difference is over `tolerance` times the largest number."""
    assert got.shape == expected.shape, f"{tuple(got.shape)} instead of {tuple(expected.shape)}"
    error = float((got.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    assert error <= tolerance, f"relative error {error:.1e}"


def check_formula(delta: Delta, base: Tensor, expected: Tensor, strength: float = 1.0) -> None:
    """Raise where the delta is not `expected`, in float64 and in float32."""
    if strength == 0:
        assert not expected.any()
    check_close(delta.weight(base, torch.float64, strength), expected, 1e-12)
    check_close(delta.weight(base, torch.float32, strength), expected, 1e-6)


def check_contract(delta: Delta, base: Tensor) -> None:
    """Raise where a family breaks what `Delta` promises, whatever its formula."""
    kept, tensors = base.clone(), {name: tensor.clone() for name, tensor in delta.tensors().items()}
    weight = delta.weight(base)
    assert weight.shape == base.shape
    assert weight.dtype == torch.float32
    assert weight.any()
    assert torch.equal(weight, delta.weight(base)), "the same twice"
    assert not delta.weight(base, strength=0.0).any(), "nothing at strength 0"
    assert not shares_memory(delta.weight(base), [base, *delta.tensors().values()])
    assert delta.weight(base, torch.bfloat16).dtype == torch.bfloat16
    assert torch.equal(base, kept)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in delta.tensors().items())
    assert delta.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    check_other_tensors(delta, base)
    check_vanishing(delta, base)


def check_vanishing(delta: Delta, base: Tensor) -> None:
    """Raise where it says that it adds nothing and adds something, or the other way round."""
    assert not delta.adds_nothing()
    tensors = dict(delta.tensors())
    assert not delta.with_tensors(
        {name: tensor.to("meta") for name, tensor in tensors.items()}
    ).adds_nothing()
    for name, tensor in tensors.items():
        zeroed = delta.with_tensors({**tensors, name: torch.zeros_like(tensor)})
        if name in delta.vanishes_with or zeroed.adds_nothing():
            assert zeroed.adds_nothing(), name
            assert not zeroed.weight(base).any(), name


def check_other_tensors(delta: Delta, base: Tensor) -> None:
    copied = delta.with_tensors(dict(delta.tensors()))
    assert type(copied) is type(delta)
    assert torch.equal(copied.weight(base), delta.weight(base))
    half = delta.with_tensors({name: tensor.bfloat16() for name, tensor in delta.tensors().items()})
    exact = half.with_tensors({name: tensor.float() for name, tensor in half.tensors().items()})
    assert torch.equal(half.weight(base), exact.weight(base)), "upcast before anything is multiplied"
    meta = delta.with_tensors({name: tensor.to("meta") for name, tensor in delta.tensors().items()})
    assert (meta.shape, meta.rank, meta.rank_scale) == (delta.shape, delta.rank, delta.rank_scale)
    fitted = meta.fitted(tuple(base.shape))
    assert fitted is not None
    assert fitted.shape == base.shape


def check_fitting(delta: Delta, base: Tensor, refused: Iterable[tuple[int, ...]]) -> None:
    """Raise where the delta does not take its own shape with and without axes of 1, or takes one of `refused`."""
    shape = tuple(base.shape)
    fitted = delta.fitted(shape)
    assert fitted is not None
    assert fitted.shape == shape
    assert fitted.fitted(shape) is fitted
    if all(size == 1 for size in shape[2:]):
        for other in (shape[:2], (*shape[:2], 1, 1)):
            moved = fitted.fitted(other)
            assert moved is not None
            assert moved.shape == other
            assert torch.equal(moved.weight(base.reshape(other)), fitted.weight(base).reshape(other))
    for other in refused:
        assert fitted.fitted(other) is None, f"fitted to {other}"


def shares_memory(tensor: Tensor, others: Iterable[Tensor]) -> bool:
    return any(tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() for other in others)


def needs_its_base(delta: Delta, wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="`weight` needs `base`"):
        delta.weight()
    with pytest.raises(ValueError, match=r"the base weight .* is not of the shape"):
        delta.weight(torch.randn(wrong))
