"""Faults put into an operation, at any of its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from lorry.patching import Undo

CHANGES = [
    name for name in vars(Undo) if name.startswith(("set_", "add_", "discard_", "delete_", "exchange"))
]
"""The methods of an undo that change something."""


class InjectedError(BaseException):
    """No `except Exception` on the way can catch it."""


class FailingTorch(TorchDispatchMode):
    """Raises instead of the n-th operation that torch is asked for."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left == 0:
            raise InjectedError
        return func(*args, **(kwargs or {}))


@contextmanager
def failing_undo(at: int, before: bool) -> Iterator[Any]:
    """Raises at the n-th change of the model that is written down, `before` or after it is done."""

    class Left:
        left = at

    def wrapped(method: Callable[..., None]) -> Callable[..., None]:
        def failing(self: Undo, *args: Any) -> None:
            Left.left -= 1
            if Left.left == 0 and before:
                raise InjectedError
            method(self, *args)
            if Left.left == 0:
                raise InjectedError

        return failing

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(Undo, name, wrapped(getattr(Undo, name)))
        yield Left


FAULTS: dict[str, Callable[[int], Any]] = {
    "torch": FailingTorch,
    "before a change": lambda at: failing_undo(at, before=True),
    "after a change": lambda at: failing_undo(at, before=False),
}
