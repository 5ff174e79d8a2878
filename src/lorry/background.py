"""Work that a thread of its own does."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import ParamSpec, TypeVar

LARGE = 1 << 23
"""Bytes. To go through fewer takes less time than a thread may wait for a core to begin on."""


def there() -> None:
    """Wait for nothing: in place of the result of a thread, where all is there already."""


P = ParamSpec("P")
T = TypeVar("T")


def begun(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Begin `work(*args, **kwargs)` in a new thread, and return what it will come to.

    A new one each time: the threads of a pool are gone in a forked process, which would wait for them forever.
    """
    coming = Future[T]()

    def run() -> None:
        try:
            coming.set_result(work(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001  # it is raised where the result is asked for
            coming.set_exception(error)

    Thread(target=run, name=f"lorry: {work.__name__}").start()
    return coming
