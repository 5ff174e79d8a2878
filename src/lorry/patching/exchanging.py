"""Parameters that exchange their tensors: pointers alone, and nothing is made or freed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from itertools import repeat
from operator import attrgetter, is_

import torch
from torch import Tensor

_swap: Callable[[Tensor, Tensor], None] | None = getattr(torch._C, "_swap_tensor_impl", None)
"""What `torch.utils.swap_tensors`, which takes ten times as long, is made of; None where torch has it no more."""
_count_users: Callable[[Tensor], int] | None = getattr(Tensor, "_use_count", None)
"""Tells how many have the tensor of a parameter, itself among them. Of torch's own as well."""
_OF_AUTOGRAD = ("grad", "_backward_hooks", "_post_accumulate_grad_hooks")


def can_exchange(parameters: Collection[Tensor]) -> bool:
    """Whether the tensors of all of these can go to others, and nothing of autograd's with them: no gradient, no hook,
    no view, and no graph.
    """
    return (
        _swap is not None
        and _count_users is not None
        and {*map(_count_users, parameters)} <= {1}
        and all(all(map(is_, map(attrgetter(name), parameters), repeat(None))) for name in _OF_AUTOGRAD)
    )


def exchange(ones: Iterable[Tensor], others: Iterable[Tensor]) -> Iterable[None]:
    """Let the tensors of `ones` and of `others` change places, pair by pair, as the result is gone through.

    Whoever holds one of them still holds that one, with the numbers, the memory and the `requires_grad` of the other.
    """
    return map(_swap or torch.utils.swap_tensors, ones, others)
