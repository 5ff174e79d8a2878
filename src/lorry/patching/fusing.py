"""A parameter with adapters fused into it: one rounding, from the original."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from lorry.algebra import Delta, LowRank
from lorry.patching.grouped import Grouped, Scaled
from lorry.patching.modes import without_modes

BLOCK = 1 << 21
"""Numbers that are widened at a time on the CPU: 8 MB of float32 stay in the last cache, and threads meet seldom."""


@without_modes()
def fused_parameter(
    start: Tensor,
    deltas: Sequence[tuple[Delta, float]],
    base: Tensor | None = None,
    out: Tensor | None = None,
    later: Grouped | None = None,
) -> Tensor:
    """Compute `start + sum(strength * delta)` in at least float32, rounded once to the dtype of `start`.

    Args:
        start: the parameter; not changed.
        deltas: each with its strength; the deltas' tensors may lie on another device and in another dtype.
        base: what families see that need the base weight; `start` when None.
        out: memory for the result, laid out like `start`; new memory when None.
        later: takes what is computed faster beside other layers; the result is there when it is run.

    Returns:
        A tensor like `start`: `out`, or a new one.
    """
    result = torch.empty_like(start) if out is None else out
    if later is not None and later.takes_layers_of(start.device):
        later.add_layer(partial(fused_parameter, start, deltas, base, result))
        return result
    pairs, full = _in_factors(start if base is None else base, deltas)
    if full is None and later is not None and later.takes(start, pairs, result):
        later.add(start, pairs, result)
    elif full is None and _can_mix(start, pairs):
        _add_mixed(start, pairs, result)
    else:
        _add_widened(start, pairs, full, result)
    return result


def _in_factors(
    base: Tensor, deltas: Sequence[tuple[Delta, float]]
) -> tuple[list[tuple[LowRank, float]], Tensor | None]:
    """Return the deltas that have factors as these, and the sum of all others as one full matrix."""
    dtype = torch.promote_types(base.dtype, torch.float32)
    pairs, full = [], None
    for delta, strength in deltas:
        pair = delta.low_rank(dtype)
        if pair is not None:
            here = LowRank(pair.down.flatten(1).to(base.device), pair.up.to(base.device), pair.scale)
            pairs.append((here, strength * pair.scale))
        else:
            here = delta.with_tensors({name: t.to(base.device) for name, t in delta.tensors().items()})
            change = here.weight(base, dtype, strength).reshape(base.shape[0], -1)
            full = change if full is None else full + change
    return pairs, full


# --- one product in the weight's own dtype ------------------------------------------------------------------------


def _can_mix(start: Tensor, pairs: Scaled) -> bool:
    """Whether the product may take factors of the weight's own dtype, and add them to the weight in float32.

    On the CPU that is for bfloat16 alone, and only where the CPU has instructions for it: without, torch's product of
    halves takes dozens of times as long as that of float32.
    """
    return (
        (start.dtype is torch.bfloat16 or (start.is_cuda and start.dtype is torch.float16))
        and start.numel() >= 1 << 12
        and start.is_contiguous()
        and any(scale for _, scale in pairs)
        and all(pair.up.dtype is pair.down.dtype is start.dtype for pair, _ in pairs)
        and (start.is_cuda or _multiplies_bfloat16())
        and _rounds_once(start.device.type, start.dtype)
    )


def _add_mixed(start: Tensor, pairs: Scaled, result: Tensor) -> None:
    """`result = start + alpha * up @ down`, summed in float32 by the product's own kernel.

    Factors at another strength than the first are scaled in float32 and given as two numbers of the dtype each, which
    hold 16 bits of the product together.
    """
    alpha = next(scale for _, scale in pairs if scale)
    ups, downs = [], []
    for pair, scale in pairs:
        pieces = [pair.up] if scale == alpha else _in_two(pair.up.float() * (scale / alpha), start.dtype)
        ups += pieces
        downs += [pair.down] * len(pieces)
    up, down = (ups[0], downs[0]) if len(ups) == 1 else (torch.cat(ups, dim=1), torch.cat(downs))
    shape = (start.shape[0], -1)
    torch.addmm(start.view(shape), up, down, alpha=alpha, out=result.view(shape))


def _in_two(exact: Tensor, dtype: torch.dtype) -> list[Tensor]:
    large = exact.to(dtype)
    return [large, (exact - large.float()).to(dtype)]


def _multiplies_bfloat16() -> bool:
    """Whether this CPU has what torch multiplies bfloat16 fast with; all processes of a machine get the same answer."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@functools.cache
def _rounds_once(device_type: str, dtype: torch.dtype) -> bool:
    """Whether this machine's product of halves sums in float32 and rounds the sum once: asked by a small one."""
    random = torch.Generator().manual_seed(0)
    weight, up, down = (
        torch.randn(*shape, generator=random, device="cpu").to(device_type, dtype)
        for shape in ((192, 160), (192, 8), (8, 160))
    )
    got = torch.addmm(weight, up, down, alpha=0.7)
    exact = weight.double() + 0.7 * (up.double() @ down.double())
    return bool((got != exact.to(dtype)).float().mean() < 0.01)


# --- sums in float32 ----------------------------------------------------------------------------------------------


def _add_widened(start: Tensor, pairs: Scaled, full: Tensor | None, result: Tensor) -> None:
    """`result = start + up @ down + full` in at least float32; narrower weights block by block of their rows."""
    dtype = torch.promote_types(start.dtype, torch.float32)
    flat = start.reshape(start.shape[0], -1)
    up = torch.cat(
        [flat.new_zeros(len(flat), 0, dtype=dtype), *(p.up.to(dtype) * s for p, s in pairs)], dim=1
    )
    down = torch.cat([flat.new_zeros(0, flat.shape[1], dtype=dtype), *(p.down.to(dtype) for p, _ in pairs)])
    if start.dtype == dtype and start.is_contiguous():
        total = result.view(flat.shape)
        torch.addmm(flat, up, down, out=total)
        if full is not None:
            total += full
        return
    rows = len(flat) if start.is_cuda else max(1, BLOCK // max(1, flat.shape[1]))
    wide = flat.new_empty(min(rows, len(flat)), flat.shape[1], dtype=dtype)
    for first in range(0, len(flat), rows):
        block = slice(first, first + rows)
        total = wide[: len(flat[block])].copy_(flat[block]).addmm_(up[block], down)
        if full is not None:
            total += full[block]
        result[block] = total.view(-1, *start.shape[1:])  # not by a flat view: channels_last has none
