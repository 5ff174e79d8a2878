"""The modes that a caller computes in, left aside: what is made for a model is the same in any of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def without_modes() -> Iterator[None]:
    """Leave inference mode, gradients and autocast inside the context, or inside the function that it decorates."""
    with torch.inference_mode(False), torch.no_grad(), ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def changing_weights() -> Iterator[None]:
    """Do so where parameters get other numbers. The casts of them that autocast keeps for a whole context are let go:
    they would be computed with as if nothing had changed.
    """
    torch.clear_autocast_cache()
    with without_modes():
        yield
