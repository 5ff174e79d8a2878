"""Which pictures each step sees, and the random numbers of each: a function of the seed and the step alone.

Nothing is carried over from one step to the next, so that a run that goes on from a checkpoint, or is shared by more
processes, sees what it would have seen.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch


@final
class Order:
    """Batches of pictures of one size, every picture as often as it is given, in another order each epoch."""

    def __init__(self, buckets: Mapping[Any, Sequence[int]], batch: int, seed: int) -> None:
        """Plan batches.

        Args:
            buckets: {size: numbers of the pictures of that size}, one number for each time that an epoch shows it.
            batch: pictures a step, in all processes together.
            seed: of the order.
        """
        self._buckets = [list(numbers) for _, numbers in sorted(buckets.items()) if numbers]
        self._batch, self._seed = batch, seed
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    @property
    def steps_per_epoch(self) -> int:
        """The steps that show every picture; the last batch of each size begins anew when it runs short."""
        return sum(-(-len(numbers) // self._batch) for numbers in self._buckets)

    def batch(self, step: int) -> list[int]:
        """Return the numbers of the pictures of a step, counted from 0."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._planned(epoch))
        return self._epoch[1][within]

    def _planned(self, epoch: int) -> list[list[int]]:
        rng = random.Random(seed_of(self._seed, "epoch", epoch))
        batches = []
        for numbers in self._buckets:
            shuffled = rng.sample(numbers, len(numbers))
            for first in range(0, len(shuffled), self._batch):
                wanted = range(first, first + self._batch)
                batches.append([shuffled[i % len(shuffled)] for i in wanted])
        rng.shuffle(batches)
        return batches


def seed_of(*words: object) -> int:
    """Return a number of 63 bits that depends on all `words`."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_of(*words: object) -> torch.Generator:
    """Return a generator on the CPU whose numbers depend on all `words` and on nothing else."""
    return torch.Generator().manual_seed(seed_of(*words))
