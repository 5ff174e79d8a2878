"""What the training scripts share: the optimiser, the two worker processes, a clock that sets the learning rate.

Two processes of one thread each, gradients averaged with gloo, beat one process of two threads on a shared
machine: a thread pool waits for its slowest thread at every operation, the two processes once a step.
"""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

WORKERS = 2
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_ARENA_MAX": "2",
}
"""glibc gives freed blocks back to the system by default, and every step pays for them again."""


class Muon(torch.optim.Optimizer):
    """Momentum whose update is replaced by the nearest orthogonal matrix; same shapes are stacked into one product.

    The stacks are shared out among the workers, which then send each other the parameters they have moved.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.0
    ) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "decay": decay})
        shared = dist.is_initialized()
        self._rank, self._world = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
        self._shares = self._share_out()

    def _share_out(self) -> list[list[list[nn.Parameter]]]:
        """For each worker its stacks, the dearest dealt first to the worker with the least to do."""
        stacks: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        for p in self.param_groups[0]["params"]:
            stacks[(p.shape[0], p[0].numel())].append(p)
        halves = [part for params in stacks.values() for part in _halves(params, self._world)]
        cost: list[float] = [0.0] * self._world
        shares: list[list[list[nn.Parameter]]] = [[] for _ in range(self._world)]
        for params in sorted(halves, key=_cost, reverse=True):
            least = cost.index(min(cost))
            cost[least] += _cost(params)
            shares[least].append(params)
        return shares

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for params in self._shares[self._rank]:
            self._step_stack(self.param_groups[0], params)
        if self._world > 1:
            for rank, stacks in enumerate(self._shares):
                _send([p for stack in stacks for p in stack], rank, self._rank)

    def _step_stack(self, group: dict[str, Any], params: list[nn.Parameter]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        rows, columns = params[0].shape[0], params[0][0].numel()
        moved = []
        for p in params:
            state = self.state[p]
            if "buffer" not in state:
                state["buffer"] = torch.zeros_like(p.grad)
            state["buffer"].lerp_(p.grad, 1 - momentum)
            moved.append(p.grad.lerp(state["buffer"], momentum).reshape(rows, columns))
        updates = _orthogonal(torch.stack(moved)) * max(1.0, rows / columns) ** 0.5
        for p, update in zip(params, updates, strict=True):
            p.mul_(1 - lr * group["decay"])
            p.sub_(update.reshape(p.shape), alpha=lr)


def _halves(params: list[nn.Parameter], parts: int) -> list[list[nn.Parameter]]:
    return [part for i in range(parts) if (part := params[i::parts])]


def _cost(params: list[nn.Parameter]) -> float:
    rows, columns = params[0].shape[0], params[0][0].numel()
    return float(len(params) * min(rows, columns) ** 2 * max(rows, columns))


def _send(params: list[nn.Parameter], owner: int, rank: int) -> None:
    """Copies the owner's parameters to every worker, as one vector."""
    flat = torch.cat([p.reshape(-1) for p in params])
    dist.broadcast(flat, owner)
    if rank != owner:
        start = 0
        for p in params:
            p.copy_(flat[start : start + p.numel()].view(p.shape))
            start += p.numel()


def _orthogonal(stack: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards the orthogonal factor (Jordan 2024, the quintic's coefficients)."""
    tall = stack.shape[-2] > stack.shape[-1]
    x = stack.mT if tall else stack
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


def average_gradients(params: Iterable[nn.Parameter]) -> None:
    """The mean over workers, sent as one vector."""
    grads = [p.grad for p in params if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    start = 0
    for g in grads:
        g.copy_(flat[start : start + g.numel()].view_as(g))
        start += g.numel()


def agree(value: float) -> float:
    """Worker 0's value, in every worker."""
    box = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(box, 0)
    return float(box)


def cosine_after(progress: float, hold: float) -> float:
    """1 until `hold`, then down to 0.02 at 1."""
    if progress < hold:
        return 1.0
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - hold) / (1 - hold))))


class Clock:
    """How much of a time budget is used, the same in every worker."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._start = time.monotonic()

    def progress(self) -> float:
        return agree((time.monotonic() - self._start) / self._seconds)


def _enter(rank: int, work: Callable[..., None], port: int, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(port)
    dist.init_process_group("gloo", rank=rank, world_size=WORKERS)
    try:
        work(rank, *args)
    finally:
        dist.destroy_process_group()


def run_workers(work: Callable[..., None], *args: Any, port: int = 29511) -> None:
    """Runs `work(rank, *args)` in every worker process."""
    os.environ.update(MALLOC)
    torch.multiprocessing.spawn(_enter, (work, port, args), nprocs=WORKERS)


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices and kernels for Muon; vectors and embedding tables for AdamW."""
    matrices, rest = [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            (rest if p.ndim < 2 or "embedding.weight" in name else matrices).append(p)
    return matrices, rest
