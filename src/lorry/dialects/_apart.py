"""Take a delta apart into the tensors that a file holds of it: what the builders do, the other way round."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from lorry.algebra import (
    BoftDelta,
    Delta,
    DoraDelta,
    FullDelta,
    GloraDelta,
    HraDelta,
    Ia3Delta,
    LohaDelta,
    LokrDelta,
    LoraDelta,
    OftDelta,
    PartsDelta,
    ReplaceDelta,
    SparseDelta,
    VeraDelta,
)
from lorry.dialects._suffixes import Role
from lorry.dialects._turning_builders import NEUMANN_TERMS

Roles = dict[Role, Tensor]

ALPHA_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What an alpha is written in: kohya's trainers cast it with the factors."""


def take_apart(delta: Delta) -> Roles:
    """Return the tensors of one layer by role; `build` of them is the same delta.

    What a config says beside the tensors (PEFT's) is left to who writes one: there the alpha is dropped, and the
    role `magnitude` or `lora_bias` takes the place of `dora_scale` or `diff_b`. Roles that no dialect has a suffix for
    (`full_scale`, the names of families) stand for what no tensors of a file say.
    """
    return _TAKERS.get(type(delta), _nameless)(delta)


def _nameless(delta: Delta) -> Roles:
    return {delta.family: _vector(delta)}


def number(value: float, beside: Tensor) -> Tensor:
    """Return a number as a tensor of no axes, in the dtype of `beside` or the next wider one that holds it."""
    exact = torch.tensor(value, dtype=torch.float64, device="cpu")
    first = ALPHA_DTYPES.index(beside.dtype) if beside.dtype in ALPHA_DTYPES else 2
    fitting = (exact.to(dtype) for dtype in (ALPHA_DTYPES[first], *ALPHA_DTYPES[2:]))
    return next(found for found in fitting if found.double() == exact)


def _alpha(delta: Any, beside: Tensor) -> Roles:
    """The alpha that gives the scale when divided by the rank; none where the delta has none."""
    if delta.alpha is None:
        return {}
    stabilised = getattr(delta, "rank_stabilised", False)
    return {"alpha": number(delta.rank_scale * delta.rank if stabilised else delta.alpha, beside)}


def _lora(delta: LoraDelta) -> Roles:
    up = delta.up.reshape(*delta.up.shape[:2], *(1 for _ in delta.down.shape[2:]))
    core = {} if delta.mid is None else {"mid": delta.mid}
    return {"down": delta.down, "up": up, **core, **_alpha(delta, delta.down)}


def _loha(delta: LohaDelta) -> Roles:
    factors = {f"hada_{name}": tensor for name, tensor in delta.tensors().items()}
    return {**factors, **_alpha(delta, delta.w1_a)}


def _lokr(delta: LokrDelta) -> Roles:
    factors = {f"lokr_{name}": tensor for name, tensor in delta.tensors().items()}
    first = next(iter(factors.values()))
    if delta.rank is not None:
        return {**factors, **_alpha(delta, first)}
    if delta.full_scale != 1:
        return {**factors, "full_scale": number(delta.full_scale, first)}
    alpha = 1.0 if delta.alpha is None or not isfinite(delta.alpha) else delta.alpha
    return {**factors, "alpha": number(alpha, first)}  # which means nothing, and LyCORIS wants one


def _glora(delta: GloraDelta) -> Roles:
    return {**delta.tensors(), **_alpha(delta, delta.a1)}


def _oft(delta: OftDelta) -> Roles:
    """LyCORIS and kohya want a constraint beside the blocks, 0 for none; PEFT's and OneTrainer's blocks are packed.

    OneTrainer turns convolutions the other way than PEFT does, so that PEFT's are written where the layer is known.
    """
    rescale = {} if delta.rescale is None else {"rescale": delta.rescale}
    if delta.on_input:
        role = "oft_R" if _is_by_default(delta) else "oft_R_of_a_config"
        if not delta.back_on_kernels and delta.target_shape is None:
            role = "oft_R_of_any_layer"
        is_back = len(delta.shape) > 2 and not delta.back_on_kernels
        blocks = -delta.blocks if is_back else delta.blocks
        return {
            role: blocks,
            **({"scaled_oft": torch.tensor(True, device="cpu")} if delta.scaled else {}),
            **rescale,
        }
    role = "kohya_oft_blocks" if delta.constraint == 0 else "oft_blocks"
    return {role: delta.blocks, **rescale, "alpha": number(delta.constraint or 0.0, delta.blocks)}


def _is_by_default(delta: OftDelta) -> bool:
    """Whether an OFT is what its tensors mean where no config says otherwise."""
    return delta.neumann_terms == NEUMANN_TERMS and not delta.opposite and delta.block_norm is None


def _boft(delta: BoftDelta) -> Roles:
    rescale = {} if delta.rescale is None else {"rescale": delta.rescale}
    if delta.on_input:
        return {"boft_R": delta.blocks, **({} if delta.rescale is None else {"boft_s": delta.rescale})}
    return {"oft_blocks": delta.blocks, **rescale, "alpha": number(delta.constraint or 0.0, delta.blocks)}


def _ia3(delta: Ia3Delta) -> Roles:
    if delta.neutral:
        return {"ia3_l": delta.vector}
    return {"ia3_weight": delta.vector, "on_input": torch.tensor(delta.on_input, device="cpu")}


def _full(delta: FullDelta) -> Roles:
    role = "w_norm" if delta.diff.ndim == 1 else "diff"
    scale = {} if delta.scale == 1 else {"full_scale": number(delta.scale, delta.diff)}
    return {role: delta.diff, **scale}


def _dora(delta: DoraDelta) -> Roles:
    inner = take_apart(delta.inner)
    ones = [1] * (max(2, len(delta.inner.shape)) - 1)
    along = (1, -1, *ones[1:]) if delta.on_input else (-1, *ones)
    has_axes = delta.magnitude.ndim > 1 and delta.magnitude.shape[delta.on_input] == delta.magnitude.numel()
    return {**inner, "dora_scale": delta.magnitude if has_axes else delta.magnitude.reshape(along)}


def _sparse(delta: SparseDelta) -> Roles:
    """LyCORIS counts in 16 bits, which a wide layer's columns do not fit into."""
    size = torch.tensor([delta.shape[0], torch.Size(delta.shape[1:]).numel()], device="cpu")
    dtype = torch.int16 if int(size.max()) <= torch.iinfo(torch.int16).max else torch.int64
    numbers = {"bias_indices": delta.indices.to(dtype), "bias_size": size.to(dtype)}
    return {**take_apart(delta.inner), **numbers, "bias_values": delta.values}


def _parts(delta: PartsDelta) -> Roles:
    bias = delta.on_bias
    if isinstance(bias, Ia3Delta):  # PEFT's (IA)^3 scales the bias with the output, by the same vector
        return {"ia3_l": bias.vector} if delta.on_weight is None else {"ia3_l": _vector(delta.on_weight)}
    weight = {} if delta.on_weight is None else take_apart(delta.on_weight)
    if isinstance(bias, ReplaceDelta):
        return {**weight, "saved_bias": bias.value}
    if not isinstance(bias, FullDelta):
        return {**weight, f"a bias by {bias.family}": next(iter(bias.tensors().values()))}
    if bias.scale != 1:
        return {**weight, "lora_bias": bias.diff}
    return {**weight, "b_norm" if "w_norm" in weight else "diff_b": bias.diff}


def _vector(delta: Delta) -> Tensor:
    return next(iter(delta.tensors().values()))


_TAKERS: dict[type[Delta], Callable[[Any], Roles]] = {
    BoftDelta: _boft,
    DoraDelta: _dora,
    FullDelta: _full,
    GloraDelta: _glora,
    HraDelta: lambda delta: {"hra_u": delta.u},
    Ia3Delta: _ia3,
    LohaDelta: _loha,
    LokrDelta: _lokr,
    LoraDelta: _lora,
    OftDelta: _oft,
    PartsDelta: _parts,
    ReplaceDelta: lambda delta: {"saved_weight": delta.value},
    SparseDelta: _sparse,
    VeraDelta: lambda delta: {"vera_lambda_b": delta.lambda_b, "vera_lambda_d": delta.lambda_d},
}
