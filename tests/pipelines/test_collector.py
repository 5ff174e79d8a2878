"""Python's garbage collector is still while adapters are read, and on again whatever happens."""

from __future__ import annotations

import gc
import threading

import pytest

from lorry.pipelines.loading import collector_paused


def test_it_is_on_again_after_an_error() -> None:
    seen = []

    def fail() -> None:
        with collector_paused():
            seen.append(gc.isenabled())
            raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        fail()
    assert seen == [False]
    assert gc.isenabled()


def test_the_last_of_several_threads_turns_it_on_again_and_no_earlier_one() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        with collector_paused():
            inside.set()
            go_on.wait(timeout=60)

    thread = threading.Thread(target=pause)
    with collector_paused():
        thread.start()
        inside.wait(timeout=60)
    try:
        assert not gc.isenabled(), "another thread is reading"
    finally:
        go_on.set()
        thread.join(timeout=60)
    assert gc.isenabled()


def test_who_has_turned_it_off_finds_it_off() -> None:
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
