"""Blocks of memory that are used again."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from lorry import memory
from lorry.memory import SMALL, new_block, release_spare, shrink_spare
from small import changing, put


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    release_spare()
    yield
    release_spare()


def test_the_memory_of_a_block_that_is_gone_is_used_again() -> None:
    block = new_block(2 * SMALL)
    place = block.data_ptr()
    del block
    assert new_block(2 * SMALL - 4096).data_ptr() == place


def test_memory_that_a_view_still_refers_to_is_not_used_again() -> None:
    view = new_block(2 * SMALL)[10:20].view(torch.uint8)
    view.fill_(7)
    new_block(2 * SMALL).fill_(0)
    assert view.tolist() == [7] * 10


def test_two_blocks_share_nothing() -> None:
    one = new_block(SMALL).fill_(1)
    two = new_block(SMALL).fill_(2)
    assert bool((one == 1).all())
    assert bool((two == 2).all())


def test_a_block_that_is_too_small_or_twice_too_large_is_not_used() -> None:
    places = {new_block(4 * SMALL).data_ptr()}
    others = [new_block(4 * SMALL + 1), new_block(2 * SMALL - 1)]
    assert places.isdisjoint(other.data_ptr() for other in others)


def wait() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("lorry"):
            thread.join()


def test_no_more_than_the_limit_is_kept_when_spare_memory_was_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LIMIT", 5 * SMALL)
    blocks = [new_block(2 * SMALL) for _ in range(8)]
    blocks.clear()
    assert len(memory._spare) == 5
    shrink_spare()
    wait()
    assert len(memory._spare) == 2
    shrink_spare()
    wait()
    assert len(memory._spare) == 2
    release_spare()
    assert not memory._spare


def test_taking_adapters_off_shrinks_spare_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LIMIT", 5 * SMALL)
    model = nn.Sequential(nn.Linear(8, 8))
    put(model)
    blocks = [new_block(2 * SMALL) for _ in range(4)]
    blocks.clear()
    with changing(model) as (state, undo):
        state.remove(["toy"], undo)
    wait()
    assert len(memory._spare) == 2
