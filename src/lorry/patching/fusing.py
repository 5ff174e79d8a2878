"""A parameter with adapters fused into it: one rounding, from the original."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorry.algebra import Delta

BLOCK = 1 << 18
"""Numbers that are widened at a time on the CPU: 1 MB of float32 stays in the cache, a whole weight would not."""


@torch.no_grad()
def fused_parameter(
    start: Tensor, deltas: Sequence[tuple[Delta, float]], base: Tensor | None = None
) -> Tensor:
    """Compute `start + sum(strength * delta)` in at least float32, rounded once to the dtype of `start`.

    Args:
        start: the parameter; not changed.
        deltas: each with its strength; the deltas' tensors may lie on another device and in another dtype.
        base: what families see that need the base weight; `start` when None.

    Returns:
        A new tensor like `start`.
    """
    with torch.autocast(start.device.type, enabled=False):
        dtype = torch.promote_types(start.dtype, torch.float32)
        up, down, full = _in_factors(start if base is None else base, deltas, dtype)
        flat = start.reshape(start.shape[0], -1)
        if start.dtype == dtype and start.ndim == 2 and start.is_contiguous():
            total = torch.addmm(flat, up, down)
            return (total if full is None else total.add_(full)).view(start.shape)
        result = torch.empty_like(start)
        rows = flat.shape[0] if start.is_cuda else max(1, BLOCK // max(1, flat.shape[1]))
        for first in range(0, flat.shape[0], rows):
            block = slice(first, first + rows)
            total = torch.addmm(flat[block].to(dtype), up[block], down)
            if full is not None:
                total += full[block]
            result[block] = total.view(-1, *start.shape[1:])  # not by a flat view: channels_last has none
        return result


def _in_factors(
    base: Tensor, deltas: Sequence[tuple[Delta, float]], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the deltas as `up @ down` joined along the rank, and what has no such form as one full matrix."""
    device, flat = base.device, base.reshape(base.shape[0], -1)
    ups, downs, full = [flat.new_zeros(flat.shape[0], 0, dtype=dtype)], [], None
    downs.append(flat.new_zeros(0, flat.shape[1], dtype=dtype))
    for delta, strength in deltas:
        pair = delta.low_rank(dtype)
        if pair is None:
            here = delta.with_tensors({name: tensor.to(device) for name, tensor in delta.tensors().items()})
            change = here.weight(base, dtype, strength).reshape(flat.shape)
            full = change if full is None else full + change
        else:
            ups.append(pair.up.to(device, dtype) * (strength * pair.scale))
            downs.append(pair.down.flatten(1).to(device, dtype))
    return torch.cat(ups, dim=1), torch.cat(downs), full
