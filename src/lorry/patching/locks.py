"""One thing at a time on a model: calls of its pipelines and changes of its adapters wait for each other."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from typing import Any, final
from weakref import WeakKeyDictionary

from torch import nn

_numbers = itertools.count()
_locks: WeakKeyDictionary[nn.Module, tuple[int, Any]] = WeakKeyDictionary()
"""A lock for each model, and its number: pipelines may share models."""


@final
class exclusive:  # noqa: N801  # a context, named as one reads it
    """A context that no two threads are in at once with the same model: the second waits.

    The thread that is in it may enter it again: a callback of a pipeline may change adapters between two steps.
    """

    def __init__(self, models: Iterable[nn.Module | None]) -> None:
        """Make it; `models` that are None are passed over."""
        found = {_lock_of(model) for model in models if model is not None}
        self._locks = [lock for _, lock in sorted(found)]  # no two have one number
        """In one order for all pipelines, so that they cannot wait for each other in turn."""

    def __enter__(self) -> None:
        for lock in self._locks:
            lock.acquire()

    def __exit__(self, *error: object) -> None:
        for lock in self._locks:
            lock.release()


def _lock_of(model: nn.Module) -> tuple[int, Any]:
    # Of two threads that make one at once, both get that of the first.
    return _locks.get(model) or _locks.setdefault(model, (next(_numbers), threading.RLock()))
