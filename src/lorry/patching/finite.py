"""Whether an adapter's numbers are numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lorry.algebra import Delta
from lorry.patching.memory import Run, one_storage, runs_of

ORDERED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes that torch finds the extremes of."""
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of a number: what its bits are read as."""


def find_not_finite(deltas: Mapping[str, Delta]) -> tuple[str, str] | None:
    """Return the module path and the name of a tensor that holds a NaN or an infinity, or None.

    Tensors that lie side by side are looked through together.
    """
    named = [
        (path, name, t.detach()) for path, delta in deltas.items() for name, t in delta.tensors().items()
    ]
    tensors = [tensor.contiguous() for _, _, tensor in named]
    for run in runs_of(tensors):
        if _is_whole_finite(run, tensors):
            continue
        for index, _ in run.members:  # or it is a gap between them that is not finite
            if not is_finite(tensors[index]):
                return named[index][:2]
    return None


def common_block(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return the whole memory that tensors of one dtype share, as a file's do, as (numbers,) of it.

    None where they do not, or are but a few of what lies in it: of a whole checkpoint, say.
    """
    storage, dtypes = one_storage(tensors), {tensor.dtype for tensor in tensors}
    if storage is None or len(dtypes) > 1 or dtypes.isdisjoint(ORDERED):
        return None
    first, length = tensors[0], storage.nbytes() // tensors[0].itemsize
    if 2 * sum(map(Tensor.numel, tensors)) < length:
        return None
    whole = torch.empty(0, dtype=first.dtype, device=first.device)
    return whole.set_(storage, 0, (length,))  # pyright: ignore[reportCallIssue]


def _is_whole_finite(run: Run, tensors: list[Tensor]) -> bool:
    dtype = run.first.dtype
    if dtype not in ORDERED or any(tensors[index].dtype != dtype for index, _ in run.members):
        return False
    return is_finite(run.bytes().view(dtype))


def is_finite(tensor: Tensor) -> bool:
    """Whether it holds no NaN and no infinity."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    ordered = tensor if tensor.dtype in ORDERED else tensor.float()
    if ordered.device.type == "cpu":
        return _are_bits_finite(ordered)
    return bool(torch.isfinite(torch.stack(torch.aminmax(ordered))).all())  # where there is a NaN, both are


def _are_bits_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite: the bits of one that is not are, as an integer, the largest of its sign.

    By numpy, in the calling thread alone: torch's threads would wait for each other, and for whoever loads meanwhile.
    """
    integers = INTEGERS[tensor.itemsize]
    infinities = (
        torch.tensor([torch.inf, -torch.inf], dtype=tensor.dtype, device="cpu").view(integers).numpy()
    )
    bits, unsigned = tensor.view(integers).numpy(), f"u{tensor.itemsize}"
    return bool(bits.max() < infinities[0] and bits.view(unsigned).max() < infinities.view(unsigned)[1])
