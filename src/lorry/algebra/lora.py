"""LoRA and LoCon: a delta of low rank, for linear and convolution weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from lorry.algebra._shapes import Spans, take_rows, with_fewer_channels, with_more_channels
from lorry.algebra.base import Delta, LowRank
from lorry.errors import FormatError


@final
@dataclass(frozen=True, eq=False, slots=True)
class LoraDelta(Delta):
    """`scale * up @ down`, or with a Tucker core `scale * sum_pq up[o,p] mid[p,q,…] down[q,i]`.

    `scale` is `alpha / rank`, or `alpha / sqrt(rank)` for rank-stabilised LoRA, or 1 where `alpha` is None.

    Source: Hu et al., LoRA (arXiv:2106.09685), section 4.1; Kalajdzievski, rsLoRA (arXiv:2312.03732), section 3;
    Yeh et al., LyCORIS (arXiv:2309.14859), appendix on the Tucker decomposition of convolutions.
    """

    down: Tensor
    """(rank, in); for a convolution (rank, in / groups, *kernel), or with `mid` a kernel of ones."""
    up: Tensor
    """(out, rank), with trailing 1x1 axes for a convolution."""
    mid: Tensor | None = None
    """(rank, rank, *kernel), or None."""
    alpha: float | None = None
    rank_stabilised: bool = False
    of_embedding: bool = False
    """Whether it is known to be for an `nn.Embedding`, whose rows are its tokens: PEFT writes those otherwise."""

    family: ClassVar[str] = "LoRA"
    vanishes_with: ClassVar[tuple[str, ...]] = ("up", "down", "mid")

    def __post_init__(self) -> None:
        down, up, mid = self.down, self.up, self.mid
        problem = None
        if not 2 <= down.ndim <= 5 or up.ndim not in (2, down.ndim, 4):
            problem = "expected factors of 2 to 5 axes, `up` of 2 or of as many as `down`"
        elif down.shape[0] == 0:
            problem = "expected a rank of at least 1"
        elif up.ndim > 2 and up.shape[2:].numel() != 1:
            problem = "expected an `up` whose kernel is 1x1"
        elif mid is None and down.shape[0] != up.shape[1]:
            problem = f"`down` has rank {down.shape[0]}, `up` has rank {up.shape[1]}"
        elif mid is not None and (
            mid.ndim not in (3, 4, 5)
            or down.shape[2:].numel() != 1
            or mid.shape[0] != up.shape[1]
            or mid.shape[1] != down.shape[0]
        ):
            problem = f"the core `mid` {tuple(mid.shape)} does not join them"
        if problem:
            raise FormatError(
                f"a LoRA of down {tuple(down.shape)} and up {tuple(up.shape)} has no meaning: {problem}. "
                "The file is damaged, or two modules' tensors were paired wrongly by the tool that wrote it."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        kernel = self.mid.shape[2:] if self.mid is not None else self.down.shape[2:]
        return (self.up.shape[0], self.down.shape[1], *kernel)

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    @property
    def rank_scale(self) -> float:
        if self.alpha is None:
            return 1.0
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)

    def tensors(self) -> Mapping[str, Tensor]:
        factors = {"down": self.down, "up": self.up}
        return factors if self.mid is None else {**factors, "mid": self.mid}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        down, up, mid = tensors["down"], tensors["up"], tensors.get("mid")
        return type(self)(down, up, mid, self.alpha, self.rank_stabilised, self.of_embedding)

    def low_rank(self, dtype: torch.dtype = torch.float32) -> LowRank:
        """The two factors; a Tucker core is multiplied into `down`, which keeps the rank."""
        up = self.up if self.up.ndim == 2 else self.up.flatten(1)
        if self.mid is None:
            return LowRank(self.down, up, self.rank_scale)
        core, down = self.mid.to(dtype), self.down.flatten(1).to(dtype)
        return LowRank(torch.einsum("pq...,qi->pi...", core, down), up, self.rank_scale)

    def weight(
        self, base: Tensor | None = None, dtype: torch.dtype = torch.float32, strength: float = 1.0
    ) -> Tensor:
        up, down = self.up.flatten(1).to(dtype), self.down.to(dtype)
        if self.mid is not None:
            down = torch.einsum("pq...,qi->pi...", self.mid.to(dtype), down.flatten(1))
        return (up @ down.flatten(1)).mul_(strength * self.rank_scale).reshape(self.shape)

    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        if self.shape == shape:
            return self
        if self.shape[:2] != shape[:2] or self.mid is not None:
            return None
        kernel = (*self.shape[2:], *shape[2:])
        if any(size != 1 for size in kernel):
            return None
        return replace(self, down=self.down.reshape(self.rank, *shape[1:]), up=self.up.flatten(1))

    def rows(self, spans: Spans) -> Self:
        return replace(self, up=take_rows(self.up, spans))

    def padded(self, shape: tuple[int, ...]) -> Self | None:
        if self.shape[:1] + self.shape[2:] != shape[:1] + shape[2:] or self.shape[1] > shape[1]:
            return None
        return replace(self, down=with_more_channels(self.down, shape[1]))

    def narrowed(self, channels: int) -> Self | None:
        down = with_fewer_channels(self.down, channels)
        return None if down is None else replace(self, down=down)
