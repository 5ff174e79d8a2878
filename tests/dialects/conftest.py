"""Building blocks of this room's tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from lorry.adapters import Adapter
from lorry.dialects import read_adapter
from lorry.files import TensorFile

Shapes = Mapping[str, tuple[int, ...]]
Read = Callable[..., Adapter]


def make_file(shapes: Shapes, alphas: Mapping[str, float] | None = None, **kwargs: object) -> TensorFile:
    """A file of random tensors, made in the order of the keys' names."""
    generator = torch.Generator().manual_seed(0)
    tensors = {key: torch.randn(shape, generator=generator) for key, shape in sorted(shapes.items())}
    tensors.update({key: torch.tensor(value) for key, value in (alphas or {}).items()})
    return TensorFile(tensors, source="test.safetensors", **kwargs)  # pyright: ignore[reportArgumentType]


def assert_total(adapter: Adapter, file: TensorFile) -> None:
    """Every key of the file is accounted for, and once."""
    keys = [key for entry in adapter.entries for key in entry.keys]
    keys += [ignored.key for ignored in adapter.ignored] + list(adapter.unknown)
    keys += [embedding.key for embedding in adapter.embeddings]
    if sorted(keys) != sorted(file.tensors):
        raise AssertionError(set(keys) ^ set(file.tensors))


def assert_same_adapter(one: Adapter, two: Adapter) -> None:
    """Both adapters have the same targets and the same deltas, bit for bit."""
    if [entry.target for entry in one.entries] != [entry.target for entry in two.entries]:
        raise AssertionError("the targets differ")
    for first, second in zip(one.entries, two.entries, strict=True):
        tensors, others = first.delta.tensors(), second.delta.tensors()
        same = tensors.keys() == others.keys() and all(
            torch.equal(tensors[name], others[name]) for name in tensors
        )
        if (
            not same
            or first.delta.rank_scale != second.delta.rank_scale
            or first.scale_source != second.scale_source
        ):
            raise AssertionError(first.target)


@pytest.fixture
def read() -> Callable[..., Adapter]:
    """Makes a file, reads it, and checks that no key is lost."""

    def read_shapes(shapes: Shapes, alphas: Mapping[str, float] | None = None, **kwargs: object) -> Adapter:
        file = make_file(shapes, alphas, **kwargs)
        adapter = read_adapter(file)
        assert_total(adapter, file)
        return adapter

    return read_shapes
