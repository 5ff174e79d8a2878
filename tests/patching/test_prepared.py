"""Prepared models: compiled once, whatever is loaded, switched, weighed, disabled or fused afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorry.algebra import Delta, FullDelta, PartsDelta
from lorry.errors import StateError
from lorry.patching import AdapterState, Strength, Undo, find_state, get_state
from models import random_deltas, tiny_text_encoder
from small import Small, changing, check_near, small_input, total, with_deltas
from snapshots import check_same, snapshot

Operation = Callable[[AdapterState, Undo], object]
ROOM = 4


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def prepared(model: nn.Module, rank: int = ROOM) -> nn.Module:
    with changing(model) as (state, undo):
        state.prepare(rank, undo)
    return model


def do(model: nn.Module, operation: Operation) -> None:
    with changing(model) as (state, undo):
        operation(state, undo)


def act(**strengths: float) -> Operation:
    return lambda s, u: s.set_active({name: Strength(value) for name, value in strengths.items()}, u)


def full(path: str, *shape: int) -> Mapping[str, Delta]:
    return {path: FullDelta(torch.randn(shape, generator=torch.Generator().manual_seed(5)))}


def journey(model: nn.Module) -> list[tuple[str, Operation]]:
    """What people do, in an order in which every step changes what stands in the modules."""
    low, high = random_deltas(model, 1, rank=2), random_deltas(model, 2, rank=3)
    part, huge = random_deltas(model, 3, ("to_q",), rank=1), random_deltas(model, 4, rank=ROOM + 3)
    return [
        ("load", lambda s, u: (s.add("low", low, u), act(low=1.0)(s, u))),
        ("another strength", act(low=0.5)),
        ("load one of another rank", lambda s, u: (s.add("high", high, u), act(high=1.0)(s, u))),
        ("switch back", act(low=1.0)),
        ("both, which fit together no more", act(low=0.5, high=-0.25)),
        ("one that reaches few layers", lambda s, u: (s.add("part", part, u), act(part=1.0)(s, u))),
        ("one of more than the slots' rank", lambda s, u: (s.add("huge", huge, u), act(huge=0.5)(s, u))),
        ("three", act(huge=0.5, part=1.0, low=1.0)),
        ("one without factors", lambda s, u: (s.add("full", full("out", 7, 5), u), act(full=0.5)(s, u))),
        ("disable", lambda s, u: s.set_enabled(False, u)),
        ("enable", lambda s, u: s.set_enabled(True, u)),
        ("fuse", lambda s, u: (act(low=1.0, part=0.5)(s, u), s.fuse(u))),
        ("beside a fused one", lambda s, u: (s.unfuse(u, ["part"]), act(low=1.0, high=0.5)(s, u))),
        ("disable what is fused", lambda s, u: s.set_enabled(False, u)),
        ("enable what is fused", lambda s, u: s.set_enabled(True, u)),
        ("unfuse", lambda s, u: s.unfuse(u)),
        ("replace", lambda s, u: s.add("low", random_deltas(model, 6, rank=4), u, replace=True)),
        ("remove one", lambda s, u: s.remove(["low"], u)),
        ("remove all", lambda s, u: s.remove(["high", "part", "huge", "full"], u)),
    ]


def acting(model: nn.Module) -> dict[str, Tensor]:
    """The sum of what acts and what is fused on a model."""
    state = find_state(model)
    assert state is not None
    strengths = {n: state.strengths[n] for n in state.active} | state.fused if state.enabled else {}
    return total({name: (state.adapters[name].deltas, s) for name, s in strengths.items()})


@pytest.mark.parametrize("rank", [0, ROOM])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_compiled_once_and_computes_what_the_adapters_say(
    backend: str, rank: int
) -> None:
    model, x = prepared(Small(), rank), small_input()
    compiled: Any = torch.compile(model, backend=backend)
    with torch.no_grad():
        assert torch.equal(compiled(x), Small()(x))
        with torch._dynamo.config.patch(error_on_recompile=True):
            for name, operation in journey(model):
                do(model, operation)
                out, exact = compiled(x), with_deltas(Small(), acting(model))(x.double())
                check_near(out, exact, 5e-6)
                assert torch.equal(out, model(x)), name


def test_code_of_inductor_is_compiled_once_too() -> None:
    model, x = prepared(Small()), small_input()
    compiled: Any = torch.compile(model)
    with torch.no_grad():
        compiled(x)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for _, operation in journey(model)[::3]:
                do(model, operation)
                check_near(compiled(x), with_deltas(Small(), acting(model))(x.double()), 5e-6)


def test_a_text_encoder_is_compiled_once() -> None:
    model = prepared(tiny_text_encoder())
    ids = torch.arange(5)[None]
    compiled: Any = torch.compile(model, backend="eager")
    with torch.no_grad():
        bare = compiled(ids).last_hidden_state
        with torch._dynamo.config.patch(error_on_recompile=True):
            do(model, lambda s, u: (s.add("a", random_deltas(model, rank=2), u), act(a=1.0)(s, u)))
            out = compiled(ids).last_hidden_state
            assert not torch.equal(out, bare)
            assert torch.equal(out, model(ids).last_hidden_state)
            do(model, lambda s, u: s.remove(["a"], u))
            assert torch.equal(compiled(ids).last_hidden_state, bare)


def test_preparing_leaves_no_trace_when_it_is_taken_off() -> None:
    model = Small()
    before = snapshot(model)
    prepared(model)
    do(model, lambda s, u: (s.add("a", random_deltas(model), u), act(a=1.0)(s, u)))
    do(model, lambda s, u: s.clear(u))
    assert find_state(model) is None
    check_same(snapshot(model), before)


def test_slots_stay_when_the_last_adapter_goes_and_keys_and_values_are_the_models_own() -> None:
    model, plain = prepared(Small()), Small()
    do(model, lambda s, u: (s.add("a", random_deltas(model, rank=9), u), act(a=1.0)(s, u)))
    assert list(model.state_dict()) == list(plain.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name])
    do(model, lambda s, u: s.remove(["a"], u))
    assert find_state(model) is not None
    assert torch.equal(model(small_input()), plain(small_input()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_prepared_model_that_is_cast_computes_in_the_new_dtype(dtype: torch.dtype) -> None:
    model = prepared(Small()).to(dtype)
    x = small_input(dtype=dtype)
    assert torch.equal(model(x), Small().to(dtype)(x))
    assert (
        model.get_buffer("out.lorry_weight").data_ptr()
        == dict(model.named_parameters())["out.weight"].data_ptr()
    )


@pytest.mark.parametrize("path", ["", "out"])
def test_an_adapter_acts_that_is_loaded_after_a_prepared_model_or_a_layer_of_it_is_cast(path: str) -> None:
    model, exact = prepared(Small()), Small()
    deltas = random_deltas(exact, 1, ("out",), rank=2)
    exact.get_submodule(path).double()
    prepared(exact)
    model.get_submodule(path).double()
    for one in (model, exact):
        do(one, lambda s, u: (s.add("a", deltas, u), act(a=1.0)(s, u)))
    for name, tensor in exact.out.named_buffers():
        got = model.get_submodule("out").get_buffer(name)
        assert got.dtype == tensor.dtype, name
        assert torch.equal(got, tensor), name
    assert bool(model.get_buffer("out.lorry_down").any())


def test_preparing_that_fails_changes_nothing() -> None:
    model = Small()
    vars(model.out)["forward"] = lambda x: x
    before = snapshot(model)
    with pytest.raises(StateError, match="another program has replaced"), Undo() as undo:
        get_state(model, undo).prepare(ROOM, undo)
    check_same(snapshot(model), before)
    with pytest.raises(StateError, match="a rank of 0 or more, got -1"), Undo() as undo:
        get_state(Small(), undo).prepare(-1, undo)


def test_more_room_can_be_made_later() -> None:
    model, x = prepared(Small(), 1), small_input()
    do(model, lambda s, u: (s.add("a", random_deltas(model), u), act(a=1.0)(s, u)))
    exact = with_deltas(Small(), acting(model))(x.double())
    check_near(model(x), exact, 2e-6)
    assert model.get_buffer("out.lorry_down").shape[0] == 1
    prepared(model, 8)
    check_near(model(x), exact, 2e-6)
    assert model.get_buffer("out.lorry_down").shape[0] == 8


def test_what_acts_by_factors_and_a_bias_beside_them_acts_in_slots_and_copies_too() -> None:
    model, x = Small(), small_input()
    lora = random_deltas(model, 1, ("to_q",), rank=2)["block.to_q"]
    deltas = {"block.to_q": PartsDelta(lora, FullDelta(torch.ones(5)))}
    do(model, lambda s, u: (s.add("toy", deltas, u), act(toy=0.5)(s, u)))
    expected = model(x)
    for rank in (0, ROOM, 1):
        check_near(prepared(model, rank)(x), expected, 1e-6)


def addresses(model: nn.Module) -> dict[str, int]:
    """Where what the side paths compute with lies, by its name."""
    ends = ("lorry_down", "lorry_up", "lorry_scale")
    return {name: tensor.data_ptr() for name, tensor in model.named_buffers() if name.endswith(ends)}


def test_factors_and_strengths_keep_their_addresses_as_a_cuda_graph_needs() -> None:
    model = prepared(Small())
    before = addresses(model)
    assert before
    for name, operation in journey(model):
        do(model, operation)
        assert addresses(model) == before, name
    do(model, lambda s, u: (s.add("a", random_deltas(model, rank=2), u), act(a=1.0)(s, u)))
    state, x = find_state(model), small_input()
    assert state is not None
    plain = model(x)
    with state.scaled(0.5):
        assert addresses(model) == before
        assert not torch.equal(model(x), plain)
    assert addresses(model) == before
    assert torch.equal(model(x), plain)


def test_slots_are_written_back_when_a_change_fails() -> None:
    model, x = prepared(Small()), small_input()
    do(model, lambda s, u: (s.add("a", random_deltas(model, 1, rank=3), u), act(a=1.0)(s, u)))
    do(model, lambda s, u: s.add("b", random_deltas(model, 2, rank=2), u))
    before, expected = {n: b.clone() for n, b in model.named_buffers()}, model(x)

    def switch_and_fail(state: AdapterState, undo: Undo) -> None:
        act(b=0.5)(state, undo)
        assert not torch.equal(model(x), expected)
        raise KeyError

    with pytest.raises(KeyError):
        do(model, switch_and_fail)
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    assert torch.equal(model(x), expected)


def check_known(model: nn.Module) -> None:
    """Raise where a buffer of lorry's is filled and nn.Module does not know that it is not persistent, or the reverse.

    accelerate's offloading with buffers looks for all others in its copy of the state dict, which has none of lorry's.
    """
    for path, module in model.named_modules():
        filled = {name for name, b in module._buffers.items() if name.startswith("lorry_") and b is not None}
        known = {name for name in module._non_persistent_buffers_set if name.startswith("lorry_")}
        assert known == filled, path


@pytest.mark.parametrize("ranks", [(ROOM, 2, 0, ROOM), (0, 2), (2, 2)])
@pytest.mark.parametrize("loaded", [False, True], ids=["", "loaded"])
def test_what_is_not_persistent_is_known_as_such_at_each_step(loaded: bool, ranks: tuple[int, ...]) -> None:
    model = Small()
    before = snapshot(model)
    if loaded:
        do(model, lambda s, u: (s.add("few", random_deltas(model, 9, ("to_q",)), u), act(few=1.0)(s, u)))
    for rank in ranks:
        prepared(model, rank)
        check_known(model)
    for _, operation in journey(model):
        do(model, operation)
        check_known(model)
    if find_state(model) is not None:
        do(model, lambda s, u: s.clear(u))
    check_same(snapshot(model), before)
