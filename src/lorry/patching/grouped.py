"""Fusing many layers: they are gathered while a model is rewritten, and computed together at its end.

On a GPU that is one launch: a layer's product is a few microseconds' work for it, and its launch costs as much; torch's
`addmm` reads and writes the weight twice besides. On the CPU each layer is one thread's.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from lorry.algebra import LowRank
from lorry.patching.side_by_side import run_side_by_side

log = logging.getLogger("lorry")

Scaled = Sequence[tuple[LowRank, float]]
"""Factors, each with the number that is on their product."""
Job = tuple[Tensor, Scaled, Tensor]
"""What is added to, what is added, and where the sum goes."""
DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


@final
class Grouped:
    """Sums `start + up @ down` that are still to be computed."""

    def __init__(self) -> None:
        self._jobs: dict[tuple[torch.device, torch.dtype], list[Job]] = {}
        self._layers: list[Callable[[], object]] = []

    def takes(self, start: Tensor, pairs: Scaled, result: Tensor) -> bool:
        """Whether a sum can be computed with others: halves on a GPU, side by side in memory, with Triton there."""
        return (
            start.is_cuda
            and start.dtype in DTYPES
            and start.is_contiguous()
            and result.is_contiguous()
            and all(pair.up.dtype is pair.down.dtype is start.dtype for pair, _ in pairs)
            and _works(start.device, start.dtype)
        )

    def add(self, start: Tensor, pairs: Scaled, result: Tensor) -> None:
        """Let `result` become `start` and the products, of (rows, all other axes), when `run` is called."""
        self._jobs.setdefault((start.device, start.dtype), []).append((start, pairs, result))

    def takes_layers_of(self, device: torch.device) -> bool:
        """Whether layers there are computed side by side: on the CPU."""
        return device.type == "cpu"

    def add_layer(self, job: Callable[[], object]) -> None:
        """Let `job` compute a layer when `run` is called."""
        self._layers.append(job)

    def run(self) -> None:
        """Compute all that was added."""
        run_side_by_side(self._layers)
        self._layers.clear()
        for (device, dtype), jobs in self._jobs.items():
            _run(jobs, device, dtype)
        self._jobs.clear()


def _run(jobs: Sequence[Job], device: torch.device, dtype: torch.dtype) -> None:
    from lorry.patching.grouped_kernel import COLUMNS, ROWS, launch

    layers, pairs, scales, counts, held = [], [], [], [], []
    for start, factors, result in jobs:
        rows, columns = start.shape[0], start[0].numel()
        first = len(pairs)
        for pair, scale in factors:
            up, down = pair.up.contiguous(), pair.down.contiguous()
            held += [up, down]
            pairs.append((up.data_ptr(), down.data_ptr(), pair.rank))
            scales.append(scale)
        layers.append((start.data_ptr(), result.data_ptr(), rows, columns, first, len(pairs), sum(counts)))
        counts.append(-(-rows // ROWS) * -(-columns // COLUMNS))
    tiles = np.repeat(np.arange(len(jobs), dtype=np.int32), counts)
    with torch.cuda.device_of(
        jobs[0][0]
    ):  # Triton launches on the current one, whatever its arguments are on
        launch(
            torch.tensor(layers, device=device),
            torch.tensor(pairs, device=device),
            torch.tensor(scales, dtype=torch.float32, device=device),
            torch.from_numpy(tiles).to(device),
            DTYPES[dtype],
        )


@functools.cache
def _works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel computes a small sum rightly here, rounding once; said once where it does not."""
    try:
        error = trial(device, dtype)
    except Exception as problem:  # noqa: BLE001  # of Triton, its compiler, the driver
        log.warning("Fusing goes layer by layer: Triton cannot be used on %s: %s", device, problem)
        return False
    if error >= 0.01:
        log.warning(
            "Fusing goes layer by layer: on %s Triton rounds %.0f%% of sums wrongly", device, 100 * error
        )
    return error < 0.01


def trial(device: torch.device, dtype: torch.dtype) -> float:
    """Return which part of the numbers of two small sums is not the exact sum, rounded once."""
    random = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, device="cpu").to(device, dtype)

    grouped, sums = Grouped(), []
    for (rows, columns), ranks in (((200, 136), (8, 20)), ((70, 330), (24,))):
        start, result = some(rows, columns), torch.empty(rows, columns, device=device, dtype=dtype)
        pairs = [(LowRank(some(rank, columns), some(rows, rank), 1.0), 0.7 / rank) for rank in ranks]
        grouped.add(start, pairs, result)
        exact = start.double() + sum(scale * (pair.up.double() @ pair.down.double()) for pair, scale in pairs)
        sums.append((result, exact))
    grouped.run()
    return max(float((result != exact.to(dtype)).float().mean()) for result, exact in sums)
