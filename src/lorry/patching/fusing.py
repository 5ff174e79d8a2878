"""The weight of a module with adapters fused into it: one rounding, from the original."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lorry.algebra import Delta
from lorry.binding import weight_shape
from lorry.errors import FuseError
from lorry.patching.placement import weight_of

FUSABLE_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_fusable(path: str, module: nn.Module) -> None:
    """Raise when a delta cannot be added to the module's own weight without loss.

    Raises:
        FuseError: the weight is quantized, packed, offloaded or a tensor subclass.
    """
    weight = weight_of(module)
    plain = (
        type(weight.data) is Tensor
        and weight.shape == weight_shape(module)
        and weight.dtype in FUSABLE_DTYPES
    )
    if weight.device.type == "meta":
        raise FuseError(
            f"`{path}` is offloaded: its weight is not here. Fuse before offloading, or stay unfused."
        )
    if not plain:
        raise FuseError(
            f"`{path}` ({type(module).__name__}) holds its weight as {type(weight.data).__name__} of {weight.dtype}, "
            "into which nothing can be fused without loss. Leave the adapter unfused: its side path works here."
        )


BLOCK = 1 << 18
"""Numbers that are widened at a time on the CPU: 1 MB of float32 stays in the cache, a whole weight would not."""


def fused_weight(original: Tensor, deltas: Sequence[tuple[Delta, float]]) -> Tensor:
    """Compute `original + sum(strength * delta)` in at least float32, rounded once to the original's dtype.

    Args:
        original: the base weight; not changed.
        deltas: each with its strength; the deltas' tensors may lie on another device and in another dtype.

    Returns:
        A new tensor like `original`.
    """
    dtype = torch.promote_types(original.dtype, torch.float32)
    up, down, full = _in_factors(original, deltas, dtype)
    flat, fused = original.flatten(1), torch.empty_like(original)
    rows = flat.shape[0] if original.is_cuda else max(1, BLOCK // max(1, flat.shape[1]))
    for start in range(0, flat.shape[0], rows):
        block = slice(start, start + rows)
        total = torch.addmm(flat[block].to(dtype), up[block], down)
        if full is not None:
            total += full[block]
        fused[block] = total.view(-1, *original.shape[1:])  # not by a flat view: channels_last has none
    return fused


def _in_factors(
    original: Tensor, deltas: Sequence[tuple[Delta, float]], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the deltas as `up @ down` joined along the rank, and what has no such form as one full matrix."""
    device = original.device
    ups, downs, full = [], [], None
    for delta, strength in deltas:
        pair = delta.low_rank() if delta.tensors().keys() == {"down", "up"} else None
        if pair is None:
            weight = delta.weight(original, dtype, strength).to(device).flatten(1)
            full = weight if full is None else full + weight
        else:
            ups.append(pair.up.to(device, dtype) * (strength * pair.scale))
            downs.append(pair.down.flatten(1).to(device, dtype))
    if not ups:
        rows, columns = original.flatten(1).shape
        return original.new_zeros(rows, 0, dtype=dtype), original.new_zeros(0, columns, dtype=dtype), full
    return torch.cat(ups, dim=1), torch.cat(downs), full
