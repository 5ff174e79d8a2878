"""How far a delta has moved from where its training began, which was not at zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from lorry.algebra.base import Delta, LowRank

START = "start_"


@final
@dataclass(frozen=True, eq=False, slots=True)
class MovedDelta(Delta):
    """`now - start`, for two low-rank deltas of one scale and one rank r; it has rank 2 r.

    Its factors are `scale * [up - up0, up0] @ [down; down - down0]`, which is the same: they are exactly zero where
    nothing has moved, and rounding them costs a share of the change and not of what the start was cut out of.

    Source: Meng et al., PiSSA (arXiv:2404.02948), the appendix on its conversion to a LoRA.
    """

    now: Delta
    start: Delta

    family: ClassVar[str] = "LoRA"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.now.shape

    @property
    def rank(self) -> int | None:
        return None if self.now.rank is None else 2 * self.now.rank

    @property
    def rank_scale(self) -> float:
        return self.now.rank_scale

    def tensors(self) -> Mapping[str, Tensor]:
        return {**self.now.tensors(), **{START + key: t for key, t in self.start.tensors().items()}}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        before = {key.removeprefix(START): t for key, t in tensors.items() if key.startswith(START)}
        now = {key: t for key, t in tensors.items() if not key.startswith(START)}
        return replace(self, now=self.now.with_tensors(now), start=self.start.with_tensors(before))

    def weight(
        self, base: Tensor | None = None, dtype: torch.dtype = torch.float32, strength: float = 1.0
    ) -> Tensor:
        return self.now.weight(base, dtype, strength).sub_(self.start.weight(base, dtype, strength))

    def low_rank(self, dtype: torch.dtype = torch.float32) -> LowRank | None:
        now, start = self.now.low_rank(dtype), self.start.low_rank(dtype)
        if now is None or start is None:
            return None
        down = torch.cat([now.down, now.down - start.down])
        return LowRank(down, torch.cat([now.up - start.up, start.up], 1), now.scale)

    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        now, start = self.now.fitted(shape), self.start.fitted(shape)
        return None if now is None or start is None else replace(self, now=now, start=start)
