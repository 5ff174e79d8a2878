"""Layers side by side on the CPU: a thread for each core, and each layer is one thread's.

torch gives each operation to all of its threads, which wait for each other at its end. Where others use the cores too
that is most of the time of many small operations; where nobody does, it makes no difference.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Semaphore

import torch

FEW = 4
"""Jobs for each thread: where there are less, one thread would be waited for at the end."""


def run_side_by_side(jobs: Iterable[Callable[[], object]]) -> None:
    """Call each of `jobs`, in their order, on as many threads as torch computes with.

    Where one fails the ones that have not begun are left out, and its error is raised when the others are done.
    """
    waiting, threads = deque(jobs), torch.get_num_threads()
    if threads == 1 or len(waiting) < FEW * threads:
        while waiting:
            waiting.popleft()()
        return
    alone, working = Semaphore(0), list[Future[None]]()
    with ThreadPoolExecutor(threads, "lorry: layers") as pool:
        try:
            try:
                for _ in range(threads):
                    working.append(pool.submit(_work, waiting, alone))
            finally:
                for _ in working:
                    alone.acquire()
                torch.set_num_threads(
                    threads
                )  # of the threads that others begin, for whom a worker's word counted too
            for one in working:
                one.result()
        finally:
            waiting.clear()


def _work(waiting: deque[Callable[[], object]], alone: Semaphore) -> None:
    try:
        torch.get_num_threads()  # or the first operation would set the number again
        torch.set_num_threads(1)
    finally:
        alone.release()
    try:
        while waiting:
            try:
                job = waiting.popleft()
            except IndexError:  # another thread was faster
                return
            job()
    except BaseException:
        waiting.clear()
        raise
