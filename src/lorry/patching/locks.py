"""One thing at a time on a model: calls of its pipelines and changes of its adapters wait for each other."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_numbers = itertools.count()
_locks: WeakKeyDictionary[nn.Module, tuple[int, Any]] = WeakKeyDictionary()
"""A lock for each model, and its number: pipelines may share models."""
_making = threading.Lock()


@contextmanager
def exclusive(models: Iterable[nn.Module | None]) -> Iterator[None]:
    """Wait until no other thread is in such a context with one of `models`, and keep others out.

    The thread that is in it may enter it again: a callback of a pipeline may change adapters between two steps.

    Args:
        models: None is passed over. All pipelines enter in one order, so that they cannot wait for each other in turn.
    """
    with _making:
        found = {
            _locks.setdefault(model, (next(_numbers), threading.RLock()))
            for model in models
            if model is not None
        }
    with ExitStack() as stack:
        for _, lock in sorted(found, key=lambda one: one[0]):
            stack.enter_context(lock)
        yield
