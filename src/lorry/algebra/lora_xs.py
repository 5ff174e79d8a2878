"""LoRA-XS: a small matrix between the first singular vectors of the base weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from lorry.algebra._shapes import UNKNOWN, Spans, are_all, columns, needed, no_meaning, trimmed
from lorry.algebra.base import Delta


@final
@dataclass(frozen=True, eq=False, slots=True)
class LoraXsDelta(Delta):
    """`scale * U @ core @ V.T`, where U and V are the first `rank` left and right singular vectors of the base weight.

    Of the two signs that a pair of vectors may have, it has the one that makes the largest number in U's positive.
    `scale` is `alpha / rank`, or 1 where `alpha` is None. It is linear in the strength.

    Source: Bałazy et al., LoRA-XS (arXiv:2405.17604), section 3, where U is multiplied by the singular values; without
    them and with these signs in Stability-AI/stable-audio-3 at 636f906f, `stable_audio_3/models/lora/model.py`.
    """

    core: Tensor
    """(rank, rank)."""
    alpha: float | None = None
    target_shape: tuple[int, ...] | None = None
    """Of the weight, once it is fitted to one."""

    family: ClassVar[str] = "LoRA-XS"
    needs_base: ClassVar[bool] = True
    vanishes_with: ClassVar[tuple[str, ...]] = ("core",)

    def __post_init__(self) -> None:
        if self.core.ndim != 2 or self.core.shape[0] != self.core.shape[1] or self.core.numel() == 0:
            raise no_meaning("a LoRA-XS", {"core": self.core}, "expected a square matrix")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.target_shape or (UNKNOWN, UNKNOWN)

    @property
    def rank(self) -> int:
        return self.core.shape[0]

    @property
    def rank_scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def tensors(self) -> Mapping[str, Tensor]:
        return {"core": self.core}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        return replace(self, core=tensors["core"])

    def weight(
        self, base: Tensor | None = None, dtype: torch.dtype = torch.float32, strength: float = 1.0
    ) -> Tensor:
        """The full delta, for which the base weight is needed.

        Raises:
            ValueError: there is no base, or it is of another shape (ShapeMismatchError).
        """
        fits = base is not None and self.fitted(tuple(base.shape)) is not None
        whole = needed(base, "a LoRA-XS", fits).to(self.core.device)
        left, right = _bases(whole.flatten(1), self.rank)
        product = left @ self.core.to(left.device, left.dtype) @ right.T
        return product.mul_(strength * self.rank_scale).to(self.core.device, dtype).reshape(whole.shape)

    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        if self.target_shape == shape:
            return self
        if self.target_shape is not None:
            same = trimmed(self.target_shape) == trimmed(shape)
            return replace(self, target_shape=tuple(shape)) if same else None
        has_bases = len(shape) > 1 and self.rank <= min(shape[0], columns(shape))
        return replace(self, target_shape=tuple(shape)) if has_bases else None

    def rows(self, spans: Spans) -> Self | None:
        """The same for all rows in another order, which changes the order of U's alone; None for some of them."""
        return self if are_all(spans, self.shape[0]) else None


def _bases(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the first left and right singular vectors, in float64.

    They are had from the eigenvectors of the smaller of the two products of a weight with itself, which takes less time
    than its decomposition: float64 has the digits for that.
    """
    wide = weight.to(
        "cpu" if weight.device.type == "mps" else weight.device, torch.float64
    )  # MPS has no float64
    is_tall = wide.shape[0] >= wide.shape[1]
    tall = wide if is_tall else wide.T
    right = torch.linalg.eigh(tall.T @ tall).eigenvectors.flip(1)[:, :rank]
    left = torch.nn.functional.normalize(tall @ right, dim=0)
    left, right = (left, right) if is_tall else (right, left)
    signs = left.gather(0, left.abs().argmax(0, keepdim=True)).sign()
    return left * signs, right * signs
