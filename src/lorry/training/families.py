"""A fresh delta of each family that can be trained: one that changes nothing yet, initialised as its source says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Final, final

import torch
from torch import Tensor, nn

from lorry.algebra import Delta, DoraDelta, Ia3Delta, LohaDelta, LokrDelta, LoraDelta, MovedDelta, OftDelta
from lorry.training.adapter_config import OF_THE_WEIGHT
from lorry.training.settings import Family, Initialisation
from lorry.training.starts import orthonormal_factors, principal_factors


@final
@dataclass(frozen=True, eq=False, slots=True)
class Site:
    """One layer that is to get a delta, and the numbers that its delta is to have."""

    weight: Tensor
    """(out, in), or (out, in / groups, kh, kw); read by families that start from it, on the device to train on."""
    shape: tuple[int, ...]
    """Of the weight, which may be packed."""
    rank: int
    alpha: float | None
    rank_stabilised: bool = False
    initialisation: Initialisation = "kaiming"
    iterations: int = 0
    """Of pissa's decomposition; 0 is the exact one."""
    scales_input: bool = False
    """Whether (IA)^3 scales the columns here."""
    generator: torch.Generator | None = None

    @property
    def out(self) -> int:
        return self.shape[0]

    @property
    def columns(self) -> int:
        return torch.Size(self.shape[1:]).numel()

    def kaiming(self, *shape: int) -> Tensor:
        """Uniform, as `nn.Linear` initialises its own weight."""
        return nn.init.kaiming_uniform_(torch.empty(*shape, device="cpu"), a=5**0.5, generator=self.generator)

    def normal(self, *shape: int, std: float) -> Tensor:
        return nn.init.normal_(torch.empty(*shape, device="cpu"), std=std, generator=self.generator)


def fresh_delta(family: Family, site: Site) -> Delta:
    """Return a delta of `family` in float32 on the CPU, zero (for DoRA up to rounding) and ready to learn."""
    if site.initialisation in OF_THE_WEIGHT:
        return _moved(site)
    return _MAKERS[family](site)


def _lora(site: Site) -> LoraDelta:
    """Source: Hu et al., LoRA (arXiv:2106.09685), section 4.1: one factor is random, the other zero."""
    shape = (site.rank, *site.shape[1:])
    gaussian = site.initialisation == "gaussian"
    down = site.normal(*shape, std=1 / site.rank) if gaussian else site.kaiming(*shape)
    up = torch.zeros(site.out, site.rank, device="cpu")
    return LoraDelta(down, up, alpha=site.alpha, rank_stabilised=site.rank_stabilised)


def _moved(site: Site) -> MovedDelta:
    """A LoRA that begins out of the weight, as near to its rank as the layer's sides let it be."""
    rank = min(site.rank, site.out, site.columns)
    matrix = site.weight.detach().float().flatten(1)
    scale = LoraDelta(matrix[:rank], matrix[:, :rank], None, site.alpha, site.rank_stabilised).rank_scale
    if site.initialisation == "olora":
        up, down = orthonormal_factors(matrix, rank)
    else:
        up, down = principal_factors(matrix, rank, scale, site.iterations, site.generator)
    down = down.reshape(rank, *site.shape[1:])
    begin = LoraDelta(down.cpu(), up.cpu(), alpha=site.alpha, rank_stabilised=site.rank_stabilised)
    return MovedDelta(begin, begin)


def _dora(site: Site) -> DoraDelta:
    """Source: Liu et al., DoRA (arXiv:2402.09353), section 4.1: the magnitude starts as the norm of the base weight."""
    rows = site.weight.detach().cpu().double().flatten(1)
    return DoraDelta(_lora(site), torch.linalg.vector_norm(rows, dim=1).float())


def _loha(site: Site) -> LohaDelta:
    """Source: LyCORIS 4.1.3, `modules/loha.py`: deviations 1 and 0.1, and one factor of the four is zero."""
    return LohaDelta(
        w1_a=site.normal(site.out, site.rank, std=0.1),
        w1_b=site.normal(site.rank, site.columns, std=1.0),
        w2_a=torch.zeros(site.out, site.rank, device="cpu"),
        w2_b=site.normal(site.rank, site.columns, std=1.0),
        alpha=site.alpha,
        target_shape=site.shape,
    )


def _lokr(site: Site) -> LokrDelta:
    """Two matrices as near to square as the sizes let them be; the larger is of factors where that is smaller.

    Source: Yeh et al., LyCORIS (arXiv:2309.14859), section 3.
    """
    fan_in, *kernel = site.shape[1:]
    out1, in1 = _divisor(site.out), _divisor(fan_in)
    out2, in2 = site.out // out1, fan_in // in1
    w1 = site.kaiming(out1, in1)
    if 2 * site.rank >= max(out2, in2):
        return LokrDelta(w1=w1, w2=torch.zeros(out2, in2, *kernel, device="cpu"), target_shape=site.shape)
    columns = in2 * torch.Size(kernel).numel()
    w2_a, w2_b = site.kaiming(out2, site.rank), torch.zeros(site.rank, columns, device="cpu")
    return LokrDelta(w1=w1, w2_a=w2_a, w2_b=w2_b, alpha=site.alpha, target_shape=site.shape)


def _ia3(site: Site) -> Ia3Delta:
    """Source: Liu et al. (arXiv:2205.05638), section 3.3: factors of 1, of which the difference to 1 is stored."""
    size = site.shape[1] if site.scales_input else site.out
    return Ia3Delta(torch.zeros(size, device="cpu"), on_input=site.scales_input, target_shape=site.shape)


def _oft(site: Site) -> OftDelta:
    """Source: Qiu et al. (arXiv:2306.07280), section 3: every rotation starts as the identity."""
    size = next(n for n in range(min(site.rank, site.out), site.out + 1) if site.out % n == 0)
    return OftDelta(torch.zeros(site.out // size, size, size, device="cpu"), target_shape=site.shape)


_MAKERS: Final[Mapping[Family, Callable[[Site], Delta]]] = {
    "lora": _lora,
    "dora": _dora,
    "loha": _loha,
    "lokr": _lokr,
    "ia3": _ia3,
    "oft": _oft,
}


def _divisor(number: int) -> int:
    """Return the largest divisor that is at most the square root."""
    return next(n for n in range(isqrt(number), 0, -1) if number % n == 0)
