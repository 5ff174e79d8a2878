"""What deltas that are made of another one have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from lorry.algebra.base import Delta


@dataclass(frozen=True, eq=False, slots=True)
class AroundDelta(Delta):
    """A delta made of an inner one, with which it has shape, rank and tensors in common, unless it says otherwise."""

    inner: Delta

    own_tensors: ClassVar[tuple[str, ...]] = ()
    """The fields that hold tensors besides the inner delta's, under whose names they are told."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    @property
    def rank(self) -> int | None:
        return self.inner.rank

    @property
    def rank_scale(self) -> float:
        return self.inner.rank_scale

    def tensors(self) -> Mapping[str, Tensor]:
        return {**self.inner.tensors(), **{name: getattr(self, name) for name in self.own_tensors}}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        others = {name: tensor for name, tensor in tensors.items() if name not in self.own_tensors}
        own = {name: tensors[name] for name in self.own_tensors}
        return replace(self, inner=self.inner.with_tensors(others), **own)
