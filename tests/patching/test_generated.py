"""Generated sequences of operations, against a plain account of what must hold after each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn

from lorry.algebra import Delta
from lorry.errors import DuplicateAdapterError, FuseError, LorryError, StateError
from lorry.patching import AdapterState, Strength, Undo, find_state, get_state
from models import random_deltas
from small import PATHS, Small, changing, check_near, small_input, total, with_deltas
from snapshots import check_same, snapshot

NAMES = st.sampled_from(["a", "b", "c"])
VALUES = st.sampled_from([0.0, 0.25, 0.5, 1.0, -0.75])
ENDS = st.sampled_from([("",), ("conv",), ("to_q", "out"), ("grouped", "conv"), ("out",)])
STRENGTHS = st.one_of(
    VALUES.map(Strength),
    st.builds(Strength, VALUES, st.dictionaries(st.sampled_from(PATHS), VALUES, max_size=2)),
)


class Adapters(RuleBasedStateMachine):
    """The model under test, and beside it an account of what was loaded, chosen, fused and disabled."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Small()
        self.bare = snapshot(self.model)
        self.base = {p: self.model.get_submodule(p).get_parameter("weight").detach().clone() for p in PATHS}
        self.loaded: dict[str, Mapping[str, Delta]] = {}
        self.strengths: dict[str, Strength] = {}
        self.active: list[str] = []
        self.fused: dict[str, Strength] = {}
        self.enabled = True

    @initialize(seed=st.integers(0, 3), ends=ENDS)
    def start(self, seed: int, ends: tuple[str, ...]) -> None:
        self.load("a", seed, ends, "lora")

    def do(self, operation: Callable[[AdapterState, Undo], object]) -> None:
        with changing(self.model) as (state, undo):
            operation(state, undo)

    def refused(self, error: type[LorryError], operation: Callable[[AdapterState, Undo], object]) -> None:
        """Raise where the operation is not refused, or where its refusal has changed anything."""
        before = snapshot(self.model)
        with pytest.raises(error, match=r"."):
            self.do(operation)
        check_same(snapshot(self.model), before)

    # --- loading ---

    @rule(
        name=NAMES,
        seed=st.integers(0, 3),
        ends=ENDS,
        kind=st.sampled_from(["lora", "tucker", "half", "alpha"]),
    )
    def load(self, name: str, seed: int, ends: tuple[str, ...], kind: str) -> None:
        more: dict[str, Any] = {
            "lora": {},
            "tucker": {"tucker": True} if ends in (("conv",), ("grouped", "conv")) else {},
            "half": {"dtype": torch.float16},
            "alpha": {"alpha": 1.0},
        }[kind]
        deltas = random_deltas(self.model, seed, ends, rank=seed + 1, **more)
        if name in self.loaded:
            self.refused(DuplicateAdapterError, lambda state, undo: state.add(name, deltas, undo))
            return
        self.do(lambda state, undo: state.add(name, deltas, undo))
        self.loaded[name] = deltas
        self.strengths[name] = Strength()

    @rule(name=NAMES, seed=st.integers(4, 6), ends=ENDS)
    def replace(self, name: str, seed: int, ends: tuple[str, ...]) -> None:
        deltas = random_deltas(self.model, seed, ends, rank=2)
        if name in self.fused:
            self.refused(StateError, lambda state, undo: state.add(name, deltas, undo, replace=True))
            return
        self.do(lambda state, undo: state.add(name, deltas, undo, replace=True))
        self.loaded[name] = deltas
        self.strengths.setdefault(name, Strength())

    @precondition(lambda self: self.loaded)
    @rule(names=st.sets(NAMES, min_size=1))
    def remove(self, names: set[str]) -> None:
        self.do(lambda state, undo: state.remove(sorted(names), undo))
        for name in names & self.loaded.keys():
            del self.loaded[name], self.strengths[name]
            self.fused.pop(name, None)
        self.active = [name for name in self.active if name not in names]
        self.enabled = self.enabled or not self.loaded

    # --- choosing ---

    @precondition(lambda self: self.loaded)
    @rule(chosen=st.dictionaries(NAMES, STRENGTHS))
    def choose(self, chosen: dict[str, Strength]) -> None:
        if any(n in self.fused and self.strengths[n] != s for n, s in chosen.items()):
            self.refused(StateError, lambda state, undo: state.set_active(chosen, undo))
            return
        self.do(lambda state, undo: state.set_active(chosen, undo))
        here = {name: strength for name, strength in chosen.items() if name in self.loaded}
        self.active = list(here)
        self.strengths |= here

    @precondition(lambda self: self.loaded)
    @rule(enabled=st.booleans())
    def enable(self, enabled: bool) -> None:
        self.do(lambda state, undo: state.set_enabled(enabled, undo))
        self.enabled = enabled

    @precondition(lambda self: self.loaded)
    @rule(names=st.sets(NAMES))
    def park(self, names: set[str]) -> None:
        self.do(lambda state, undo: state.park(sorted(names), torch.device("cpu"), undo))

    # --- fusing ---

    @precondition(lambda self: self.loaded)
    @rule(
        names=st.none() | st.lists(NAMES, unique=True), scale=VALUES, keep=st.sampled_from(["device", "cpu"])
    )
    def fuse(self, names: list[str] | None, scale: float, keep: Any) -> None:
        wanted = [name for name in (self.active if names is None else names) if name in self.loaded]
        again = names is not None and any(name in self.fused for name in wanted)
        if wanted and (again or not self.enabled):
            self.refused(FuseError, lambda state, undo: state.fuse(undo, names, scale, originals=keep))
            return
        self.do(lambda state, undo: state.fuse(undo, names, scale, safe=True, originals=keep))
        self.fused |= {name: self.strengths[name].times(scale) for name in wanted if name not in self.fused}

    @precondition(lambda self: self.loaded)
    @rule(names=st.none() | st.lists(NAMES, unique=True))
    def unfuse(self, names: list[str] | None) -> None:
        self.do(lambda state, undo: state.unfuse(undo, names))
        for name in list(self.fused) if names is None else names:
            self.fused.pop(name, None)

    # --- what must not matter ---

    @rule()
    def cast_there_and_back(self) -> None:
        self.model.double().float()

    @rule(scale=st.sampled_from([0.5, 2.0]))
    def call_at_a_scale(self, scale: float) -> None:
        x = small_input()
        if self.fused and self.enabled:
            with pytest.raises(FuseError, match="for this call cannot reach"):
                self.model(x, cross_attention_kwargs={"scale": scale})
            return
        if self.loaded:
            exact = with_deltas(Small(), total(self.acting(scale)))
            check_near(self.model(x, cross_attention_kwargs={"scale": scale}), exact(x.double()), 1e-5)

    @precondition(lambda self: self.loaded)
    @rule(
        names=st.lists(NAMES, unique=True),
        stop=st.sampled_from(["load", "choose", "fuse", "unfuse", "disable", "remove"]),
        seed=st.integers(7, 9),
    )
    def fail_half_way(self, names: list[str], stop: str, seed: int) -> None:
        before = snapshot(self.model)

        def fail() -> None:
            with Undo() as undo:
                state = get_state(self.model, undo)
                steps: dict[str, Callable[[], object]] = {
                    "load": lambda: state.add("late", random_deltas(self.model, seed), undo),
                    "choose": lambda: state.set_active({n: state.strengths[n] for n in state.adapters}, undo),
                    "fuse": lambda: state.set_enabled(True, undo) or state.fuse(undo),
                    "unfuse": lambda: state.unfuse(undo, names),
                    "disable": lambda: state.set_enabled(not state.enabled, undo),
                    "remove": lambda: state.clear(undo),
                }
                for name, step in steps.items():
                    step()
                    if name == stop:
                        raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt, match=r"^$"):
            fail()
        check_same(snapshot(self.model), before)

    # --- what must hold ---

    def acting(self, scale: float = 1.0) -> dict[str, tuple[Mapping[str, Delta], Strength]]:
        if not self.enabled:
            return {}
        beside = {name: self.strengths[name].times(scale) for name in self.active if name not in self.fused}
        return {name: (self.loaded[name], strength) for name, strength in (self.fused | beside).items()}

    @invariant()
    def outputs_are_those_of_the_exact_sum(self) -> None:
        x = small_input()
        with torch.no_grad():
            check_near(self.model(x), with_deltas(Small(), total(self.acting()))(x.double()), 1e-5)

    @invariant()
    def weights_without_anything_fused_into_them_have_their_own_bits(self) -> None:
        changed = {path for name in self.fused for path in self.loaded[name]} if self.enabled else set()
        for path in PATHS:
            weight = self.model.get_submodule(path).get_parameter("weight")
            assert path in changed or torch.equal(weight, self.base[path]), path

    @invariant()
    def the_state_says_what_was_done(self) -> None:
        state = find_state(self.model)
        assert (state is None) == (not self.loaded)
        if state is not None:
            assert (set(state.adapters), list(state.active)) == (set(self.loaded), self.active)
            assert (state.strengths, state.fused, state.enabled) == (self.strengths, self.fused, self.enabled)
        patched = {path for deltas in self.loaded.values() for path in deltas}
        for path in PATHS:
            plain = type(self.model.get_submodule(path)) in (nn.Linear, nn.Conv2d)
            assert plain == (path not in patched), path
        assert list(self.model.state_dict()) == self.bare["keys"]

    def teardown(self) -> None:
        if self.loaded:
            self.do(lambda state, undo: state.clear(undo))
        before = {**self.bare}
        after = snapshot(self.model)
        check_same(after, before)


TestGeneratedSequences = Adapters.TestCase
TestGeneratedSequences.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
