"""Every operation fails at every one of its steps, and leaves model and state bit for bit as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from faults import FAULTS, FailingTorch, InjectedError
from lorry.patching import AdapterState, Strength, Undo, exchanging, find_state, get_state
from lorry.training import AdapterConfig, add_adapter
from models import random_deltas
from small import Small, changing, put, small_input
from snapshots import check_same, snapshot

Operation = Callable[[AdapterState, Undo], object]


def bare(model: nn.Module) -> None:
    """Nothing loaded."""


def two(model: nn.Module) -> None:
    put(model, "first", 0.5)
    put(model, "second", 0.25, seed=1, ends=("to_q", "conv"))


def one(model: nn.Module) -> None:
    put(model, "first", 0.5)


def disabled(model: nn.Module) -> None:
    two(model)
    do(model, lambda state, undo: state.set_enabled(False, undo))


def fused(model: nn.Module) -> None:
    two(model)
    do(model, lambda state, undo: state.fuse(undo, ["first"]))


def both_fused(model: nn.Module) -> None:
    two(model)
    do(model, lambda state, undo: state.fuse(undo, originals="cpu"))


def fused_and_disabled(model: nn.Module) -> None:
    both_fused(model)
    do(model, lambda state, undo: state.set_enabled(False, undo))


def training(model: nn.Module) -> None:
    one(model)
    add_adapter(model, AdapterConfig(rank=2, target_modules=["to_q", "conv"]), "trained")
    do(model, lambda state, undo: state.set_active({"first": Strength(), "trained": Strength()}, undo))


def prepared(model: nn.Module) -> None:
    two(model)
    do(model, lambda state, undo: state.prepare(4, undo))


def do(model: nn.Module, operation: Operation) -> None:
    with changing(model) as (state, undo):
        operation(state, undo)


SPARE = random_deltas(Small(), 7, ("out", "conv"), rank=2)
TUCKER = random_deltas(Small(), 8, ("conv", "grouped"), rank=2, tucker=True)
STRENGTHS = {"first": Strength(1.5), "second": Strength(-1.0)}

OPERATIONS: dict[str, tuple[Callable[[nn.Module], None], Operation]] = {
    "attach and add": (bare, lambda s, u: s.add("first", SPARE, u)),
    "add": (two, lambda s, u: s.add("third", SPARE, u)),
    "add and activate": (
        one,
        lambda s, u: (s.add("t", TUCKER, u), s.set_active({"t": Strength(), "first": Strength()}, u)),
    ),
    "replace": (two, lambda s, u: s.add("first", SPARE, u, replace=True)),
    "replace a trained one": (training, lambda s, u: s.add("trained", SPARE, u, replace=True)),
    "remove one": (two, lambda s, u: s.remove(["first"], u)),
    "remove all": (two, lambda s, u: s.remove(["first", "second"], u)),
    "remove a fused one": (fused, lambda s, u: s.remove(["first"], u)),
    "remove while disabled": (fused_and_disabled, lambda s, u: s.remove(["first"], u)),
    "remove a trained one": (training, lambda s, u: s.remove(["trained"], u)),
    "clear": (both_fused, lambda s, u: s.clear(u)),
    "clear and keep fused": (both_fused, lambda s, u: s.clear(u, keep_fused=True)),
    "clear in training": (training, lambda s, u: s.clear(u)),
    "set strengths": (two, lambda s, u: s.set_active(STRENGTHS, u)),
    "set another set": (two, lambda s, u: s.set_active({"second": Strength()}, u)),
    "set in another order": (two, lambda s, u: s.set_active(dict(reversed(STRENGTHS.items())), u)),
    "set none": (two, lambda s, u: s.set_active({}, u)),
    "set without the trained one": (training, lambda s, u: s.set_active({"first": Strength()}, u)),
    "disable": (two, lambda s, u: s.set_enabled(False, u)),
    "enable": (disabled, lambda s, u: s.set_enabled(True, u)),
    "disable fused": (both_fused, lambda s, u: s.set_enabled(False, u)),
    "enable fused": (fused_and_disabled, lambda s, u: s.set_enabled(True, u)),
    "fuse": (two, lambda s, u: s.fuse(u)),
    "fuse safely to the cpu": (two, lambda s, u: s.fuse(u, safe=True, originals="cpu")),
    "fuse without originals": (two, lambda s, u: s.fuse(u, originals="none")),
    "fuse another": (fused, lambda s, u: s.fuse(u, ["second"])),
    "prepare": (two, lambda s, u: s.prepare(2, u)),
    "make more room": (prepared, lambda s, u: s.prepare(9, u)),
    "switch on a prepared model": (prepared, lambda s, u: s.set_active({"second": Strength()}, u)),
    "fuse on a prepared model": (prepared, lambda s, u: s.fuse(u)),
    "clear a prepared model": (prepared, lambda s, u: s.clear(u)),
    "fuse in training": (training, lambda s, u: s.fuse(u)),
    "unfuse one": (both_fused, lambda s, u: s.unfuse(u, ["second"])),
    "unfuse all": (both_fused, lambda s, u: s.unfuse(u)),
    "unfuse while disabled": (fused_and_disabled, lambda s, u: s.unfuse(u)),
    "park": (two, lambda s, u: s.park(["first", "second"], torch.device("cpu"), u)),
}


def attempt(model: nn.Module, operation: Operation, fault: Any) -> bool:
    """Whether the operation failed before its end."""
    try:
        with fault, Undo() as undo:
            operation(get_state(model, undo), undo)
    except InjectedError:
        return True
    return False


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_that_fails_at_any_step_has_changed_nothing(name: str, fault: str) -> None:
    set_up, operation = OPERATIONS[name]
    model = Small()
    set_up(model)
    before = snapshot(model)
    steps = 0
    while attempt(model, operation, FAULTS[fault](steps + 1)):
        check_same(snapshot(model), before)
        steps += 1
    assert steps > 0 or fault == "torch", "the operation was never interrupted"

    # It has now been done after all those failures: the same as on a model where it never failed.
    smooth = Small()
    set_up(smooth)
    do(smooth, operation)
    x = small_input()
    assert torch.equal(model(x), smooth(x))
    assert list(model.state_dict()) == list(smooth.state_dict())
    with changing(model) as (state, undo):
        state.clear(undo, keep_fused=True)
    assert find_state(model) is None
    assert type(model) is Small
    assert type(model.conv) is nn.Conv2d


@pytest.mark.parametrize("fault", FAULTS)
def test_making_an_adapter_to_train_changes_nothing_when_it_fails(fault: str) -> None:
    model = Small()
    model.out.weight.requires_grad_(False)
    before = snapshot(model)
    config = AdapterConfig(rank=2, target_modules=["to_q", "conv"])
    steps = 0
    while True:
        try:
            with FAULTS[fault](steps + 1):
                add_adapter(model, config)
            break
        except InjectedError:
            check_same(snapshot(model), before)
            steps += 1
    assert steps > 5


@pytest.mark.parametrize("fault", FAULTS)
def test_a_strength_for_a_call_that_fails_on_the_way_in_changes_nothing(fault: str) -> None:
    model = Small()
    two(model)
    before = snapshot(model)
    state = find_state(model)
    assert state is not None
    entered = False
    steps = 0
    while not entered:
        try:
            with FAULTS[fault](steps + 1), state.scaled(0.5):
                entered = True
                break
        except InjectedError:
            if not entered:
                check_same(snapshot(model), before)
            steps += 1
    assert steps > 2


def test_a_strength_for_a_call_that_fails_on_the_way_out_is_over_all_the_same() -> None:
    model = Small()
    two(model)
    out = model(small_input())
    state = find_state(model)
    assert state is not None
    mode = FailingTorch(1)
    try:
        with state.scaled(0.5):
            mode.__enter__()
    except InjectedError:
        pass
    finally:
        mode.__exit__(None, None, None)
    assert torch.equal(model(small_input()), out)


def test_what_is_taken_back_goes_back_last_first() -> None:
    holder: dict[str, Any] = {"gone": 2, "kept": 1}
    thing = nn.Linear(1, 1)

    def change_and_fail() -> None:
        with Undo() as undo:
            undo.set_item(holder, "kept", 3)
            undo.set_item(holder, "kept", 4)
            undo.set_item(holder, "new", 5)
            undo.delete_item(holder, "gone")
            undo.set_attribute(thing, "in_features", 6)
            undo.set_attribute(thing, "in_features", 7)
            raise InjectedError

    with pytest.raises(InjectedError, match=r"^$"):
        change_and_fail()
    assert list(holder.items()) == [("gone", 2), ("kept", 1)]
    assert thing.in_features == 1


def test_tensors_change_places_back_where_a_pair_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    ones, others = ([nn.Parameter(torch.full((2,), 10.0 * i + j)) for i in range(3)] for j in range(2))
    held = [one.detach().clone() for one in ones + others]
    swap, calls = exchanging._swap, list[Tensor]()
    assert swap is not None

    def failing_once(one: Tensor, other: Tensor) -> None:
        calls.append(one)
        if len(calls) == 2:
            raise InjectedError
        swap(one, other)

    monkeypatch.setattr(exchanging, "_swap", failing_once)
    with pytest.raises(InjectedError), Undo() as undo:
        undo.exchange(ones, others)
    assert len(calls) == 3
    assert all(map(torch.equal, ones + others, held))
    with Undo() as undo:
        undo.exchange(ones, others)
    assert all(map(torch.equal, others + ones, held))


def test_what_was_done_without_an_exception_stays_done() -> None:
    holder: dict[str, Tensor | int] = {"a": 1}
    with Undo() as undo:
        undo.set_item(holder, "a", 2)
    assert holder == {"a": 2}
