"""`AdapterState`: which adapters act, how strongly, and a model that is as it was when the last one is gone."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from lorry.algebra import Delta, FullDelta, PartsDelta
from lorry.errors import DuplicateAdapterError, StateError, UnknownAdapterError
from lorry.patching import Strength, Undo, get_state, take_scale
from models import random_deltas, tiny_text_encoder, tiny_unet, unet_inputs
from small import PATHS, Small, changing, check_near, put, small_input, state_of, total, with_deltas
from snapshots import check_same, snapshot


def activate(model: nn.Module, **strengths: float) -> None:
    with changing(model) as (state, undo):
        state.set_active({name: Strength(value) for name, value in strengths.items()}, undo)


def enable(model: nn.Module, enabled: bool) -> None:
    with changing(model) as (state, undo):
        state.set_enabled(enabled, undo)


def remove(model: nn.Module, *names: str) -> None:
    with changing(model) as (state, undo):
        state.remove(names, undo)


def fuse(model: nn.Module, *, off: bool = False) -> None:
    with changing(model) as (state, undo):
        (state.unfuse if off else state.fuse)(undo)


def park(model: nn.Module, *names: str, device: str = "cpu") -> None:
    with changing(model) as (state, undo):
        state.park(names, torch.device(device), undo)


# --- on and off again ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Small, tiny_unet, tiny_text_encoder])
def test_a_model_is_in_everything_as_it_was_when_its_adapters_are_gone(make: type[nn.Module]) -> None:
    model = make()
    before = snapshot(model)
    put(model, "first")
    put(model, "second", 0.3, seed=1)
    enable(model, False)
    enable(model, True)
    remove(model, "second")
    remove(model, "first")
    check_same(snapshot(model), before)


def test_two_hundred_loads_and_unloads_leave_no_tensor_behind() -> None:
    model = Small()
    deltas = random_deltas(model)

    def cycle() -> None:
        put(model, deltas=deltas)
        activate(model, toy=0.5)
        model(small_input(), cross_attention_kwargs={"scale": 0.5})
        with changing(model) as (state, undo):
            state.fuse(undo)
        remove(model, "toy")

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    cycle()
    before = tensors()
    for _ in range(200):
        cycle()
    # Threads of earlier tests may make a few meanwhile; one that is left behind at each cycle would be 200.
    assert tensors() - before < 200


def test_the_memory_of_a_removed_adapter_is_freed_at_once() -> None:
    model = Small()
    put(model, "first")
    put(model, "second", seed=1)
    gc.collect()
    gc.disable()
    try:
        first = state_of(model).adapters["first"].deltas["conv"].tensors()["down"]
        reference = weakref.ref(first)
        del first
        buffer = weakref.ref(model.conv.get_buffer("lorry_down"))
        remove(model, "first")
        assert reference() is None
        assert buffer() is None
    finally:
        gc.enable()


def test_a_failed_load_of_a_second_adapter_leaves_the_first_working() -> None:
    model = Small()
    put(model, "first")
    before, out = snapshot(model), model(small_input())

    def load_and_fail() -> None:
        with changing(model) as (state, undo):
            state.add("second", random_deltas(model, 1), undo)
            state.set_active({"first": Strength(), "second": Strength()}, undo)
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        load_and_fail()
    check_same(snapshot(model), before)
    assert torch.equal(model(small_input()), out)


def test_a_failed_first_load_leaves_no_state() -> None:
    model = Small()
    before = snapshot(model)
    with pytest.raises(KeyError, match="nowhere"), Undo() as undo:
        get_state(model, undo).add("toy", {"nowhere": random_deltas(model)["conv"]}, undo)
    check_same(snapshot(model), before)


# --- which act ----------------------------------------------------------------------------------------------------


def test_a_loaded_adapter_is_inactive_until_it_is_made_active() -> None:
    model = Small()
    bare = model(small_input())
    with changing(model) as (state, undo):
        state.add("toy", random_deltas(model), undo)
    assert torch.equal(model(small_input()), bare)
    assert state_of(model).mode("toy") == "inactive"
    activate(model, toy=1.0)
    assert not torch.equal(model(small_input()), bare)


def test_only_the_adapters_that_are_named_act_whatever_was_before() -> None:
    model = Small()
    loaded = {name: put(model, name, seed=n, ends=ends) for n, (name, ends) in enumerate(THREE.items())}
    for chosen in ({"a": 0.5}, {"b": 1.0, "c": -1.0}, {"c": 1.0, "a": 2.0, "b": 0.0}, {}, {"b": 0.1}):
        activate(model, **chosen)
        added = total({name: (loaded[name], Strength(value)) for name, value in chosen.items()})
        check_near(model(small_input()), with_deltas(Small(), added)(small_input().double()), 2e-6)
        assert state_of(model).active == tuple(chosen)


THREE = {"a": ("",), "b": ("conv", "to_q"), "c": ("out", "grouped", "to_q")}


def test_names_that_are_not_on_this_model_are_passed_over() -> None:
    model = Small()
    put(model)
    activate(model, toy=0.5, elsewhere=1.0)
    assert state_of(model).active == ("toy",)
    assert set(state_of(model).strengths) == {"toy"}


def test_disabling_takes_the_effect_off_and_enabling_brings_the_same_back() -> None:
    model = Small()
    bare = model(small_input())
    put(model, "first", 0.5)
    put(model, "second", 0.25, seed=1)
    out = model(small_input())
    enable(model, False)
    assert torch.equal(model(small_input()), bare)
    assert state_of(model).mode("first") == "disabled"
    enable(model, True)
    assert torch.equal(model(small_input()), out)


def test_what_is_chosen_while_disabled_acts_when_enabled() -> None:
    model = Small()
    bare = model(small_input())
    put(model)
    enable(model, False)
    activate(model, toy=0.5)
    second = put(model, "second", 2.0, seed=1)
    assert torch.equal(model(small_input()), bare)
    activate(model, second=2.0)
    enable(model, True)
    exact = with_deltas(Small(), total({"second": (second, Strength(2.0))}))
    check_near(model(small_input()), exact(small_input().double()), 2e-6)


def test_a_new_strength_rewrites_no_factors() -> None:
    model = Small()
    put(model, "first")
    put(model, "second", seed=1)
    factors = {
        p: (model.get_submodule(p).get_buffer("lorry_down"), type(model.get_submodule(p))) for p in PATHS
    }
    activate(model, first=0.1, second=0.2)
    model(small_input(), cross_attention_kwargs={"scale": 0.5})
    for path, (down, cls) in factors.items():
        assert model.get_submodule(path).get_buffer("lorry_down") is down
        assert type(model.get_submodule(path)) is cls


def test_a_gradient_through_another_strength_than_the_one_that_stands_is_refused() -> None:
    model = Small()
    put(model)
    added = model(small_input().requires_grad_()).sum()
    activate(model, toy=0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        added.backward()


def test_a_module_has_the_factors_of_the_active_adapters_only() -> None:
    model = Small()
    put(model, "first", rank=2)
    put(model, "second", seed=1, rank=3)
    assert model.out.get_buffer("lorry_down").shape == (5, 5)
    activate(model, second=1.0)
    assert model.out.get_buffer("lorry_down").shape == (3, 5)


def test_removing_an_unknown_adapter_changes_nothing() -> None:
    model = Small()
    put(model)
    before = snapshot(model)
    remove(model, "stranger")
    check_same(snapshot(model), before, identity=False)


def test_removing_one_of_two_unpatches_the_modules_that_only_it_had() -> None:
    model = Small()
    put(model, "first")
    second = put(model, "second", 0.5, seed=1, ends=("to_q",))
    remove(model, "first")
    assert type(model.conv) is nn.Conv2d
    check_near(
        model(small_input()),
        with_deltas(Small(), total({"second": (second, Strength(0.5))}))(small_input().double()),
        2e-6,
    )


# --- names --------------------------------------------------------------------------------------------------------


def test_a_taken_name_is_refused_and_says_how_to_go_on() -> None:
    model = Small()
    put(model)
    before = snapshot(model)
    with pytest.raises(DuplicateAdapterError, match=r"'toy' is loaded already.*`delete_adapters\('toy'\)`"):
        put(model)
    check_same(snapshot(model), before)


def test_an_unknown_name_is_told_with_the_nearest_one() -> None:
    model = Small()
    put(model, "sketch")
    with pytest.raises(
        UnknownAdapterError, match=r"'skech' .*\(loaded: 'sketch'\)\. Did you mean 'sketch'\?"
    ):
        state_of(model).mode("skech")


def test_a_replaced_adapter_acts_as_the_old_one_did() -> None:
    model = Small()
    put(model, "other", 0.5, seed=5, ends=("to_q",))
    put(model, "toy", 0.7)
    new = random_deltas(model, 2, ("to_q", "conv"), rank=5)
    with changing(model) as (state, undo):
        state.add("toy", new, undo, replace=True)
    other = random_deltas(Small(), 5, ("to_q",))
    added = total({"toy": (new, Strength(0.7)), "other": (other, Strength(0.5))})
    check_near(model(small_input()), with_deltas(Small(), added)(small_input().double()), 2e-6)
    assert type(model.out) is nn.Linear, "a module that only the old one had is unpatched"


def test_replacing_an_adapter_that_is_not_there_loads_it() -> None:
    model = Small()
    with changing(model) as (state, undo):
        state.add("toy", random_deltas(model), undo, replace=True)
    assert state_of(model).mode("toy") == "inactive"


def test_replacing_a_trained_adapter_takes_its_parameters_off() -> None:
    model = Small()
    before = list(model.state_dict()), [name for name, _ in model.named_parameters()]
    with changing(model) as (state, undo):
        deltas = random_deltas(model)
        state.add_trainable(
            "toy",
            {
                p: d.with_tensors({k: nn.Parameter(t) for k, t in d.tensors().items()})
                for p, d in deltas.items()
            },
            undo,
        )
        state.set_active({"toy": Strength()}, undo)
    assert len(list(model.parameters())) > len(before[1])
    with changing(model) as (state, undo):
        state.add("toy", random_deltas(model, 1, ("to_q",)), undo, replace=True)
    assert (list(model.state_dict()), [name for name, _ in model.named_parameters()]) == before


# --- a strength for one call --------------------------------------------------------------------------------------


def test_the_strength_of_a_call_ends_with_it_and_with_an_exception() -> None:
    model = Small()
    put(model)
    before = snapshot_but_scales(model)
    out = model(small_input())
    assert not torch.equal(model(small_input(), cross_attention_kwargs={"scale": 0.5}), out)
    with pytest.raises(RuntimeError, match="Expected 3D"):
        model(torch.zeros(1), cross_attention_kwargs={"scale": 0.5})
    assert torch.equal(model(small_input()), out)
    assert snapshot_but_scales(model) == before


def snapshot_but_scales(model: nn.Module) -> dict[str, object]:
    """What a strength for a call must not touch: everything but the scale buffers' identity."""
    state = state_of(model)
    seen: dict[str, object] = {
        f"{p}.{n}": id(b) for p, m in model.named_modules() for n, b in m._buffers.items()
    }
    seen = {name: value for name, value in seen.items() if not name.endswith("lorry_scale")}
    scales = {p: model.get_submodule(p).get_buffer("lorry_scale").tolist() for p in PATHS}
    return {**seen, "scales": scales, "call": state.call_scale, "strengths": state.strengths}


def test_strengths_of_calls_multiply_when_they_nest() -> None:
    model = Small()
    deltas = put(model, strength=0.8)
    with state_of(model).scaled(0.5), state_of(model).scaled(0.5):
        out = model(small_input())
    exact = with_deltas(Small(), total({"toy": (deltas, Strength(0.2))}))
    check_near(out, exact(small_input().double()), 2e-6)


def test_a_strength_for_a_call_does_not_switch_disabled_adapters_on() -> None:
    model = Small()
    bare = model(small_input())
    put(model)
    enable(model, False)
    assert torch.equal(model(small_input(), cross_attention_kwargs={"scale": 0.5}), bare)


def test_a_call_at_strength_zero_is_the_base() -> None:
    model = Small()
    bare = model(small_input())
    put(model)
    assert torch.equal(model(small_input(), cross_attention_kwargs={"scale": 0.0}), bare)


@pytest.mark.parametrize("argument", ["cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs"])
def test_the_scale_is_taken_out_of_the_arguments_and_the_rest_stays(argument: str) -> None:
    kwargs = {argument: {"scale": 0.5, "gligen": 1}, "other": 2}
    assert take_scale(kwargs) == (0.5, {argument: {"gligen": 1}, "other": 2})
    assert kwargs == {argument: {"scale": 0.5, "gligen": 1}, "other": 2}
    assert take_scale({argument: {"scale": 0.5}}) == (0.5, {argument: None})
    assert take_scale({argument: None}) == (1.0, {argument: None})
    assert take_scale({argument: {"scale": None}}) == (1.0, {argument: None})


def test_a_scaled_call_in_inference_mode_leaves_the_model_fit_for_gradients() -> None:
    model = Small()
    put(model)
    with torch.inference_mode():
        model(small_input(), cross_attention_kwargs={"scale": 0.5})
    x = small_input().requires_grad_()
    model(x).sum().backward()


# --- parking ------------------------------------------------------------------------------------------------------


def test_a_parked_adapter_goes_on_acting_with_the_same_bits() -> None:
    model = Small()
    put(model, "first", 0.5)
    put(model, "second", 0.25, seed=1)
    out = model(small_input())
    park(model, "first")
    assert torch.equal(model(small_input()), out)
    enable(model, False)
    park(model, "second")
    enable(model, True)
    assert torch.equal(model(small_input()), out)
    assert state_of(model).adapters["first"].parked == torch.device("cpu")


def test_parking_elsewhere_moves_the_tensors_there() -> None:
    model = Small()
    put(model)
    activate(model)
    park(model, "toy", device="meta")
    deltas = state_of(model).adapters["toy"].deltas
    assert {tensor.device.type for delta in deltas.values() for tensor in delta.tensors().values()} == {
        "meta"
    }


def test_an_adapter_in_training_is_not_parked() -> None:
    model = Small()
    deltas = random_deltas(model, ends=("out",))
    with changing(model) as (state, undo):
        state.add_trainable("toy", deltas, undo)
    with pytest.raises(StateError, match="in training cannot be parked"):
        park(model, "toy")


# --- copies and files ---------------------------------------------------------------------------------------------


def test_a_deep_copy_has_adapters_of_its_own() -> None:
    model = tiny_unet()
    put(model, "first", 0.5)
    put(model, "second", 0.25, seed=1)
    with changing(model) as (state, undo):
        state.fuse(undo, ["first"])
    inputs = unet_inputs(model)
    out = model(**inputs).sample
    twin = copy.deepcopy(model)
    assert torch.equal(twin(**inputs).sample, out)
    assert state_of(twin).model is twin
    remove(twin, "first", "second")
    assert torch.equal(model(**inputs).sample, out)
    assert torch.equal(twin(**inputs).sample, tiny_unet()(**inputs).sample)
    assert type(twin) is UNet2DConditionModel


def test_a_deep_copy_follows_its_own_state() -> None:
    model = Small()
    put(model)
    out = model(small_input())
    twin = copy.deepcopy(model)
    activate(twin, toy=0.25)
    assert torch.equal(model(small_input()), out)
    assert not torch.equal(twin(small_input()), out)
    assert not torch.equal(twin(small_input(), cross_attention_kwargs={"scale": 2.0}), twin(small_input()))


def test_a_state_dict_of_a_patched_model_goes_to_a_file_and_back() -> None:
    model = tiny_unet()
    put(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    tiny_unet(seed=1).load_state_dict(torch.load(file, weights_only=True), strict=True)


def test_a_patched_model_can_be_pickled_whole() -> None:
    model = tiny_unet()
    put(model)
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(twin(**unet_inputs(model)).sample, model(**unet_inputs(model)).sample)


def test_a_patched_model_is_freed_when_the_last_reference_goes() -> None:
    gc.collect()
    gc.disable()
    try:
        model = Small()
        put(model)
        reference = weakref.ref(model)
        del model
        assert reference() is None
    finally:
        gc.enable()


# --- what it says -------------------------------------------------------------------------------------------------


def test_the_state_prints_every_adapter_with_its_mode_and_bytes() -> None:
    model = Small()
    put(model, "first", 0.5)
    put(model, "second", 0.25, seed=1, ends=("to_q",))
    put(model, "third", Strength(1.0, {"conv": 0.0}), seed=2)
    activate(model, first=0.5, third=1.0)
    with changing(model) as (state, undo):
        state.set_active({"first": Strength(0.5), "third": Strength(1.0, {"conv": 0.0})}, undo)
        state.fuse(undo, ["first"], 0.5)
    head, *lines = str(state_of(model)).splitlines()
    assert head.startswith("Small: 3 adapters, ")
    assert [line.strip().rpartition(", ")[0] for line in lines] == [
        "first: fused at 0.25, 4 targets",
        "second: inactive, 1 targets",
        "third: active at by block, 4 targets",
    ]


def test_the_bytes_are_all_that_adapters_hold_on_the_model() -> None:
    model = Small()
    put(model, "first")
    put(model, "second", seed=1)
    held = {
        b.untyped_storage().data_ptr(): b.untyped_storage().nbytes() for b in model.buffers() if b is not None
    }
    kept = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for resident in state_of(model).adapters.values()
        for delta in resident.deltas.values()
        for t in delta.tensors().values()
    }
    assert state_of(model).nbytes >= sum((held | kept).values())


# --- layers that an adapter would not act on ------------------------------------------------------------------


def test_a_layer_whose_forward_another_program_replaced_is_refused_and_left_alone() -> None:
    model = Small()
    replaced = model.out.forward
    vars(model.out)["forward"] = lambda x: replaced(x)  # what trainers' networks do
    before = snapshot(model)
    with pytest.raises(StateError, match="`out`: another program has replaced this layer's forward"):
        put(model)
    check_same(snapshot(model), before)


def test_a_part_of_a_model_with_adapters_does_not_take_adapters_of_its_own() -> None:
    model = Small()
    put(model)
    with pytest.raises(
        StateError, match="carries adapters already, which were loaded on a model that this one is a part of"
    ):
        put(model.block)


@pytest.mark.parametrize("family", ["full", "norm", "bias"])
def test_a_family_without_factors_acts_by_copies_and_fuses_and_leaves_no_trace(family: str) -> None:
    model, x = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)), torch.randn(2, 6)
    delta: dict[str, Delta] = {
        "full": {"0": FullDelta(torch.randn(6, 6))},
        "norm": {"1": PartsDelta(FullDelta(torch.randn(6)), FullDelta(torch.randn(6)))},
        "bias": {"0": PartsDelta(None, FullDelta(torch.randn(6)))},
    }[family]
    exact = copy.deepcopy(model)
    with torch.no_grad():
        for path, one in delta.items():
            for key in ("weight", "bias"):
                if (part := one.part(key)) is not None:
                    exact.get_submodule(path).get_parameter(key).add_(part.weight(), alpha=0.5)
    bare, before = model(x), snapshot(model)
    put(model, deltas=delta, strength=0.5)
    assert torch.equal(model(x), exact(x))
    with changing(model) as (state, undo):
        state.set_active({"toy": Strength(0.0)}, undo)
    assert torch.equal(model(x), bare)
    with changing(model) as (state, undo):
        state.set_active({"toy": Strength(0.5)}, undo)
        state.fuse(undo)
    assert torch.equal(model(x), exact(x))
    with changing(model) as (state, undo):
        state.clear(undo)
    assert torch.equal(model(x), bare)
    check_same(snapshot(model), before)


def test_adapters_of_the_same_ranks_share_the_memory_of_their_strengths() -> None:
    model = Small()
    for name, rank in (("a", 2), ("b", 2), ("wider", 3)):
        with changing(model) as (state, undo):
            state.add(name, random_deltas(model, len(name), PATHS, rank=rank), undo)
            state.set_active({name: Strength()}, undo)
    memory, numbers = {}, {}
    for name, strength in (("a", 0.5), ("wider", 0.25), ("b", -2.0), ("a", 0.5)):
        with changing(model) as (state, undo):
            state.set_active({name: Strength(strength)}, undo)
        scales = [model.get_submodule(path).get_buffer("lorry_scale") for path in PATHS]
        memory[name] = [scale.data_ptr() for scale in scales]
        numbers.setdefault(name, []).append([scale.tolist() for scale in scales])
    assert memory["a"] == memory["b"]
    assert memory["a"] != memory["wider"]
    assert numbers["a"][0] == numbers["a"][1] == [[0.5, 0.5]] * len(PATHS)
    assert numbers["b"] == [[[-2.0, -2.0]] * len(PATHS)]
    assert numbers["wider"] == [[[0.25] * 3] * len(PATHS)]


class Scaled(nn.Module):
    """A block whose parameters are called as lorry's factors are."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.scale = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.down * self.scale


def test_parameters_that_are_called_as_factors_are_go_one_by_one() -> None:
    model = nn.Sequential(Scaled())
    before = snapshot(model)
    with changing(model) as (state, undo):
        state.add("toy", {"0.scale": FullDelta(torch.full((4,), 2.0))}, undo)
        state.set_active({"toy": Strength()}, undo)
    assert torch.equal(model(torch.ones(4)), torch.full((4,), 3.0))
    with changing(model) as (state, undo):
        state.remove(["toy"], undo)
    assert torch.equal(model(torch.ones(4)), torch.ones(4))
    check_same(snapshot(model), before)


def test_nn_module_knows_of_just_the_buffers_that_are_filled() -> None:
    model = Small()
    before = snapshot(model)
    put(model, "all", rank=2)
    put(model, "one", deltas=random_deltas(model, 1, PATHS[:1], rank=3))
    steps = {
        "disabled": lambda: enable(model, False),
        "chosen while disabled": lambda: activate(model, all=1.0),
        "enabled": lambda: enable(model, True),
        "one of two": lambda: activate(model, one=1.0),
        "nobody": lambda: activate(model),
        "both": lambda: activate(model, all=1.0, one=0.5),
        "fused": lambda: fuse(model),
        "removed": lambda: remove(model, "one"),
        "unfused": lambda: fuse(model, off=True),
        "disabled again": lambda: enable(model, False),
        "cast": lambda: model.to(torch.float64),
        "enabled again": lambda: enable(model, True),
        "nobody again": lambda: activate(model),
        "another": lambda: put(model, "one", deltas=random_deltas(model, 1, PATHS[:1], rank=3)),
    }
    filled: dict[str, int] = {}
    for step, change in steps.items():
        change()
        filled[step] = 0
        for path in PATHS:
            module = model.get_submodule(path)
            names = {name for name, tensor in module._buffers.items() if tensor is not None}
            assert module._non_persistent_buffers_set == names, (step, path)
            filled[step] += len(names & {"lorry_down", "lorry_up"})
    assert filled["disabled"] == filled["fused"] == filled["nobody"] == filled["nobody again"] == 0
    assert filled["one of two"] == filled["another"] == 2
    assert filled["enabled"] == filled["both"] == filled["unfused"] == 2 * len(PATHS)
    remove(model, "all", "one")
    model.float()
    check_same(snapshot(model), before, identity=False)


def test_a_layer_that_is_cast_while_nobody_acts_computes_in_its_dtype_afterwards() -> None:
    model, exact = Small(), Small()
    put(model, "toy")
    enable(model, False)
    for one in (model, exact):
        one.get_submodule(PATHS[0]).to(torch.float64)
    put(exact, "toy")
    enable(model, True)
    for path in PATHS:
        for name in ("lorry_down", "lorry_up"):
            got, wanted = (one.get_submodule(path).get_buffer(name) for one in (model, exact))
            assert got.dtype == wanted.dtype, (path, name)
            assert torch.equal(got, wanted), (path, name)


@pytest.mark.parametrize("change", ["parked", "swapped", "another removed"])
def test_a_model_that_is_cast_while_disabled_adapters_were_changed_has_them_in_its_dtype(change: str) -> None:
    model, exact = Small(), Small()
    put(model, "other", seed=1)
    activate(model)
    deltas = put(model, "toy")
    enable(model, False)
    if change == "parked":
        park(model, "other", "toy")
    elif change == "swapped":
        remove(model, "other")
        with changing(model) as (state, undo):
            state.add("toy", deltas, undo, replace=True)
    else:
        remove(model, "other")
        park(model, "toy")
    model.double()
    enable(model, True)
    put(exact.double(), deltas=deltas)
    check_same_buffers(model, exact)


def test_weights_of_another_dtype_that_are_given_while_nobody_acts_are_what_adapters_compute_in() -> None:
    model, exact = Small(), Small()
    deltas = put(model, dtype=torch.float64)
    enable(model, False)
    model.load_state_dict({key: tensor.double() for key, tensor in model.state_dict().items()}, assign=True)
    enable(model, True)
    put(exact.double(), deltas=deltas)
    check_same_buffers(model, exact)


def test_a_call_at_a_scale_leaves_a_copy_on_which_nobody_acts_as_it_is() -> None:
    model = Small()
    put(model)
    activate(model)
    model = copy.deepcopy(model)
    before = snapshot(model)
    model(small_input(), cross_attention_kwargs={"scale": 0.5})
    check_same(snapshot(model), before)
    put(model, "one", deltas=random_deltas(model, 1, ("out",)))
    for path in PATHS:
        module = model.get_submodule(path)
        filled = {name for name, tensor in module._buffers.items() if tensor is not None}
        assert module._non_persistent_buffers_set == filled, path
        assert bool(filled) == (path == "out"), path


def check_same_buffers(model: nn.Module, exact: nn.Module) -> None:
    """Raise where what stands in the side paths of one model differs in a bit or a dtype from the other's."""
    for path in PATHS:
        here, there = (dict(one.get_submodule(path).named_buffers()) for one in (model, exact))
        assert here.keys() == there.keys() != set(), path
        for name, tensor in there.items():
            assert here[name].dtype == tensor.dtype, (path, name)
            assert torch.equal(here[name], tensor), (path, name)
