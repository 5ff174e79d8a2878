"""Fusing in one rounding from the saved original, and getting the original's own bits back."""

from __future__ import annotations

import copy
import errno
import gc
import pickle
import time
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from lorry.algebra import DoraDelta, FullDelta
from lorry.errors import FuseError, StateError
from lorry.patching import Originals, Strength, exchanging, find_state, fusing
from lorry.patching.fusing import fused_parameter
from models import random_delta, random_deltas
from small import PATHS, Small, changing, check_near, put, small_input, state_of, total, with_deltas
from snapshots import check_same, snapshot

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
KEPT: list[Originals] = ["device", "cpu", "disk"]


def fuse(model: nn.Module, names: Sequence[str] | None = None, scale: float = 1.0, **kwargs: Any) -> None:
    with changing(model) as (state, undo):
        state.fuse(undo, names, scale, **kwargs)


def unfuse(model: nn.Module, names: Sequence[str] | None = None) -> None:
    with changing(model) as (state, undo):
        state.unfuse(undo, names)


def clear(model: nn.Module, **kwargs: Any) -> None:
    with changing(model) as (state, undo):
        state.clear(undo, **kwargs)


def enable(model: nn.Module, enabled: bool) -> None:
    with changing(model) as (state, undo):
        state.set_enabled(enabled, undo)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {path: model.get_submodule(path).get_parameter("weight").detach().clone() for path in PATHS}


def check_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise where a tensor differs in a bit."""
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name


def step(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between the numbers that `dtype` has around each exact one."""
    info = torch.finfo(dtype)
    exponent = torch.floor(torch.log2(exact.abs().clamp_min(info.smallest_normal)))
    return info.eps * 2.0**exponent


# --- one rounding -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"]
)
@pytest.mark.parametrize("shape", [(300, 200), (1, 7), (30, 20, 3, 3), (8, 1, 3, 3), (6, 5, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
def test_fused_parameters_are_within_one_rounding_of_the_exact_sum(
    dtype: torch.dtype, shape: tuple[int, ...], layout: torch.memory_format
) -> None:
    original = torch.randn(shape).to(dtype)
    if len(shape) == 4:
        original = original.to(memory_format=layout)
    before = original.clone()
    deltas = [
        (random_delta(shape, 1, 4, alpha=2.0, dtype=dtype), 0.7),
        (random_delta(shape, 2, 2, tucker=len(shape) == 4), -1.3),
        (random_delta(shape, 3, 1, dtype=torch.float16), 0.2),
    ]
    fused = fused_parameter(original, deltas)
    exact = original.double() + sum(
        strength * delta.weight(dtype=torch.float64) for delta, strength in deltas
    )
    # Half a step of the dtype, and what float32 sums of some dozen terms may add before they are rounded.
    allowed = step(exact, dtype) / 2 + (2e-6 if dtype != torch.float64 else 1e-14)
    assert bool(((fused.double() - exact).abs() <= allowed).all())
    assert fused.dtype == dtype
    assert fused.stride() == original.stride()
    assert torch.equal(original, before)


@pytest.mark.parametrize("tucker", [False, True])
def test_weights_larger_than_a_block_are_fused_whole(tucker: bool) -> None:
    original = torch.randn(600, 60, 3, 3)
    delta = random_delta((600, 60, 3, 3), rank=2, tucker=tucker)
    check_near(
        fused_parameter(original, [(delta, 1.0)]), original.double() + delta.weight(dtype=torch.float64), 1e-6
    )


def test_autocast_does_not_lower_the_precision_of_fusing() -> None:
    model, exact = Small(), Small()
    put(model)
    exact.load_state_dict(model.state_dict())
    put(exact)
    fuse(exact)
    with torch.autocast("cpu", torch.bfloat16):
        fuse(model)
    check_equal(weights(model), weights(exact))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_second_adapter_is_fused_from_the_original_too(dtype: torch.dtype) -> None:
    together, one_by_one = Small().to(dtype), Small().to(dtype)
    for model in (together, one_by_one):
        put(model, "first", 0.7)
        put(model, "second", -0.4, seed=1)
    fuse(together)
    fuse(one_by_one, ["first"])
    fuse(one_by_one, ["second"])
    check_equal(weights(one_by_one), weights(together))


@pytest.mark.parametrize("dtype", DTYPES)
def test_unfusing_one_of_two_leaves_what_the_other_alone_would_give(dtype: torch.dtype) -> None:
    both, alone = Small().to(dtype), Small().to(dtype)
    put(both, "first", 0.7, ends=("conv", "to_q"))
    for model in (both, alone):
        put(model, "second", -0.4, seed=1, ends=("to_q", "out"))
    fuse(both)
    unfuse(both, ["first"])
    fuse(alone)
    check_equal(weights(both), weights(alone))
    assert list(state_of(both).fused) == ["second"]
    unfuse(both)
    check_equal(weights(both), weights(Small().to(dtype)))


# --- the way back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("originals", KEPT)
@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
def test_ten_rounds_of_fusing_and_unfusing_change_no_bit(dtype: torch.dtype, originals: Originals) -> None:
    model = Small().to(dtype)
    bare = snapshot(model)
    put(model, "first", 0.7)
    put(model, "second", -0.3, seed=1, ends=("to_q",))
    before = weights(model)
    x = small_input(dtype=dtype)
    out = model(x)
    for round_number in range(10):
        fuse(model, scale=0.1 * round_number + 0.1, originals=originals)
        assert not torch.equal(model.conv.weight, before["conv"])
        unfuse(model)
        check_equal(weights(model), before)
        assert torch.equal(model(x), out)
    clear(model)
    check_same(snapshot(model), bare)


def test_fused_parameters_are_the_same_parameters_with_other_values() -> None:
    model = Small()
    parameters = dict(model.named_parameters())
    put(model)
    fuse(model)
    assert all(parameter is parameters[key] for key, parameter in model.named_parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_unfusing_gives_each_parameter_its_own_tensor_back() -> None:
    model = Small()
    parameters = [model.get_submodule(path).get_parameter("weight") for path in PATHS]
    own = [parameter._cdata for parameter in parameters]
    put(model)
    for _ in range(2):
        fuse(model)
        put(model, "second", seed=1)
        fuse(model)
        assert {parameter._cdata for parameter in parameters}.isdisjoint(own)
        unfuse(model)
        assert [parameter._cdata for parameter in parameters] == own
        with changing(model) as (state, undo):
            state.remove(["second"], undo)


def _gradient(model: Small) -> Tensor:
    return torch.autograd.grad(model(small_input()).sum(), model.out.weight)[0]


@pytest.mark.parametrize("when", ["before", "while fused", "while fused twice"])
@pytest.mark.parametrize("what", ["gradient", "hook", "late hook", "frozen", "graph", "view"])
def test_what_autograd_keeps_of_a_parameter_outlives_fusing_and_unfusing(what: str, when: str) -> None:
    model, x, calls = Small(), small_input(), list[Tensor]()
    parameter, before, bare = model.out.weight, weights(model), Small()
    expected = _gradient(bare)
    put(model, strength=1e-3)
    if when != "before":
        fuse(model)
    kept: Any = None
    if what == "gradient":
        parameter.grad = kept = torch.ones_like(parameter)
    elif what == "hook":
        parameter.register_hook(calls.append)
    elif what == "late hook":
        parameter.register_post_accumulate_grad_hook(calls.append)
    elif what == "frozen":
        parameter.requires_grad_(False)
    elif what == "graph":
        kept = model(x).sum()
    else:
        kept = parameter.view(-1)
    if when != "while fused":
        put(model, "second", 1e-3, seed=1)
        fuse(model)
    unfuse(model)
    check_equal(weights(model), before)
    assert parameter.requires_grad == (what != "frozen")
    if what == "gradient":
        assert parameter.grad is kept
    elif what == "graph":
        kept.backward()
        assert parameter.grad is not None
        check_near(parameter.grad, expected, 0.1)
    elif what == "view" and when == "before":
        assert kept.data_ptr() == parameter.data_ptr()
    clear(model)
    parameter.grad = None
    model(x).sum().backward()
    assert (parameter.grad is None) == (what == "frozen")
    assert len(calls) == (what in {"hook", "late hook"})


def test_a_torch_that_cannot_exchange_tensors_fuses_and_unfuses_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchanging, "_swap", None)
    model = Small()
    before = weights(model)
    put(model)
    for _ in range(2):
        fuse(model)
        assert not torch.equal(model.out.weight, before["out"])
        unfuse(model)
        check_equal(weights(model), before)


class Tagged(nn.Parameter):
    """Another library's parameter, whose data is plain."""


@pytest.mark.parametrize("originals", KEPT)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_parameter_of_another_class_gets_its_original_back(
    dtype: torch.dtype, originals: Originals
) -> None:
    model = Small().to(dtype)
    for path in PATHS:
        layer = model.get_submodule(path)
        layer.register_parameter("weight", Tagged(layer.get_parameter("weight").data))
    before, put_in = weights(model), put(model, dtype=dtype)
    for _ in range(2):  # the second time into memory of the first
        fuse(model, originals=originals)
        fused, exact = weights(model), with_deltas(Small().to(dtype), total({"toy": (put_in, Strength(1.0))}))
        for path in PATHS:
            check_near(fused[path], exact.get_submodule(path).get_parameter("weight"), 1e-2)
        enable(model, False)
        check_equal(weights(model), before)
        enable(model, True)
        check_equal(weights(model), fused)
        unfuse(model)
        check_equal(weights(model), before)
    assert all(type(model.get_submodule(path).get_parameter("weight")) is Tagged for path in PATHS)


@pytest.mark.parametrize("kept", [False, True], ids=["exchanged", "in place"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_context_of_autocast_sees_what_is_fused_and_taken_out_inside_of_it(grad: bool, kept: bool) -> None:
    model, x = Small(), small_input()
    if kept:
        model.out.weight.grad = torch.ones_like(model.out.weight)
    put(model)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
        model(x)
        changes = (fuse, partial(enable, enabled=False), partial(enable, enabled=True), unfuse)
        for change in changes:
            change(model)
            assert torch.equal(model(x), copy.deepcopy(model)(x)), "a copy has nothing cast yet"


@pytest.mark.parametrize("originals", KEPT)
@pytest.mark.parametrize("cast", [False, True])
def test_weights_taken_out_in_inference_mode_can_be_trained(cast: bool, originals: Originals) -> None:
    model = Small()
    put(model)
    for way in (unfuse, partial(enable, enabled=False)):
        with torch.inference_mode():
            fuse(model, originals=originals)
        if cast:
            model.bfloat16()
        with torch.inference_mode():
            way(model)
        model(small_input(dtype=model.out.weight.dtype)).sum().backward()
        assert model.out.weight.grad is not None


@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_and_unfused_outputs_agree(dtype: torch.dtype) -> None:
    model = Small().to(dtype)
    deltas = put(model, strength=0.8, dtype=dtype)
    fuse(model, scale=0.5)
    exact = with_deltas(Small().to(dtype), total({"toy": (deltas, Strength(0.4))}))
    x = small_input(dtype=dtype)
    check_near(model(x), exact(x.double()), 8 * torch.finfo(dtype).eps)


def test_fusing_takes_strengths_by_path() -> None:
    model = Small()
    strength = Strength(1.0, {"conv": 0.0, "out": 2.0})
    deltas = put(model, strength=strength)
    fuse(model, scale=0.5)
    exact = with_deltas(Small(), total({"toy": (deltas, strength.times(0.5))}))
    for path in PATHS:
        check_near(weights(model)[path], exact.get_submodule(path).get_parameter("weight"), 1e-6)


def test_the_strength_after_unfusing_is_the_one_before_fusing() -> None:
    model = Small()
    put(model, strength=0.8)
    x = small_input()
    before = model(x)
    fuse(model, scale=0.25)
    unfuse(model)
    assert torch.equal(model(x), before)


def test_an_inactive_adapter_can_be_fused_and_is_inactive_again_after() -> None:
    model = Small()
    bare = model(small_input())
    put(model)
    with changing(model) as (state, undo):
        state.set_active({}, undo)
    fuse(model)
    assert torch.equal(model(small_input()), bare), "no active adapters, so nothing is fused"
    fuse(model, ["toy"])
    assert not torch.equal(model(small_input()), bare)
    unfuse(model)
    assert torch.equal(model(small_input()), bare)


@pytest.mark.parametrize("originals", KEPT)
def test_a_model_cast_while_fused_unfuses_to_its_cast_original(originals: Originals) -> None:
    model = Small()
    put(model)
    fuse(model, originals=originals)
    model.half()
    unfuse(model)
    check_equal(weights(model), weights(Small().half()))


@pytest.mark.parametrize("originals", KEPT)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_what_is_fused_on_top_after_a_cast_unfuses_to_the_cast_original(
    originals: Originals, one_by_one: bool
) -> None:
    model = Small()
    put(model)
    fuse(model, originals=originals)
    model.bfloat16()
    put(model, "second", seed=1)
    fuse(model, ["second"], originals=originals)
    if one_by_one:
        unfuse(model, ["second"])
    unfuse(model)
    check_equal(weights(model), weights(Small().bfloat16()))


def test_originals_on_the_cpu_are_copies() -> None:
    model = Small()
    memory = model.conv.weight.data_ptr()
    put(model)
    fuse(model, originals="cpu")
    state = find_state(model)
    assert state is not None
    kept = state._weights._originals["conv.weight"].tensor
    assert kept is not None
    assert kept.data_ptr() != memory


def test_originals_on_the_device_are_the_old_weights_themselves() -> None:
    model = Small()
    memory = model.conv.weight.data_ptr()
    put(model)
    fuse(model)
    unfuse(model)
    assert model.conv.weight.data_ptr() == memory


def test_without_originals_every_way_back_is_refused_and_keeping_is_not() -> None:
    model = Small()
    put(model)
    put(model, "second", seed=1)
    fuse(model, ["toy"], originals="none")
    fused, before = weights(model), snapshot(model)
    with pytest.raises(FuseError, match='was fused with `originals="none"`: there are no saved bits'):
        unfuse(model)
    with pytest.raises(FuseError, match="no saved bits"):
        enable(model, False)
    with pytest.raises(FuseError, match="no saved bits"):
        clear(model)
    with pytest.raises(FuseError, match="no saved bits"):
        fuse(model, ["second"])
    check_same(snapshot(model), before)
    clear(model, keep_fused=True)
    check_equal(weights(model), fused)
    assert find_state(model) is None


def test_kept_fused_parameters_stay_when_all_adapters_go() -> None:
    model = Small()
    put(model, "first")
    put(model, "second", seed=1)
    fuse(model, ["first"])
    fused = weights(model)
    enable(model, False)
    clear(model, keep_fused=True)
    check_equal(weights(model), fused)
    assert type(model.conv) is nn.Conv2d
    assert "lorry" not in vars(model)


def test_originals_that_are_let_go_are_held_by_nothing() -> None:
    model = Small()
    put(model)
    fuse(model)
    state = state_of(model)
    held = [weakref.ref(tensor) for tensor in state._weights.tensors()]
    clear(model, keep_fused=True)
    assert not [one for one in held if one() is not None]


def test_a_copy_of_a_fused_model_holds_the_fused_weights_once() -> None:
    model = nn.Sequential(nn.Linear(256, 256, bias=False))
    put(model)
    fuse(model)
    with_original = 2 * model[0].get_parameter("weight").nbytes
    assert with_original < len(pickle.dumps(model)) < 1.25 * with_original


def test_the_memory_of_fused_weights_is_free_when_others_put_them_elsewhere() -> None:
    model = Small()
    before = weights(model)
    put(model)
    fuse(model)
    held = [StorageWeakRef(parameter.untyped_storage()) for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # as diffusers' offloading by stream does
    assert all(one.expired() for one in held)
    unfuse(model)
    check_equal(weights(model), before)


# --- with the other operations ------------------------------------------------------------------------------------


def test_disabling_turns_fused_adapters_off_and_on_again() -> None:
    model = Small()
    before, bare = weights(model), model(small_input())
    put(model)
    fuse(model, scale=0.5)
    fused, out = weights(model), model(small_input())
    for _ in range(3):
        enable(model, False)
        check_equal(weights(model), before)
        assert torch.equal(model(small_input()), bare)
        enable(model, True)
        check_equal(weights(model), fused)
        assert torch.equal(model(small_input()), out)


def test_unfusing_and_removing_while_disabled_restore_the_original() -> None:
    for act in (unfuse, clear):
        model = Small()
        before = weights(model)
        put(model)
        fuse(model)
        enable(model, False)
        act(model)
        check_equal(weights(model), before)


def test_unfused_while_disabled_stays_off_until_enabled() -> None:
    model = Small()
    bare = model(small_input())
    put(model)
    active = model(small_input())
    fuse(model)
    enable(model, False)
    unfuse(model)
    assert torch.equal(model(small_input()), bare)
    enable(model, True)
    assert torch.equal(model(small_input()), active)


def test_removing_a_fused_adapter_unfuses_it_and_leaves_the_others() -> None:
    model, alone = Small(), Small()
    put(model, "first")
    for one in (model, alone):
        put(one, "second", 0.4, seed=1)
    fuse(model)
    fuse(alone)
    with changing(model) as (state, undo):
        state.remove(["first"], undo)
    check_equal(weights(model), weights(alone))


def test_a_fused_adapter_keeps_its_strength_until_unfused() -> None:
    model = Small()
    put(model, strength=0.8)
    fuse(model)
    with pytest.raises(
        StateError, match=r"'toy' is fused at 0\.8, which `set_adapters` cannot change to 0\.5"
    ):
        put_strength(model, 0.5)
    put_strength(model, 0.8)


def put_strength(model: nn.Module, strength: float) -> None:
    with changing(model) as (state, undo):
        state.set_active({"toy": Strength(strength)}, undo)


def test_a_fused_adapter_cannot_be_fused_again_or_replaced() -> None:
    model = Small()
    put(model)
    fuse(model)
    before = snapshot(model)
    with pytest.raises(FuseError, match="'toy' is fused already, at 1"):
        fuse(model, ["toy"])
    with pytest.raises(StateError, match="'toy' is fused: unfuse it"), changing(model) as (state, undo):
        state.add("toy", random_deltas(model), undo, replace=True)
    fuse(model)
    check_same(snapshot(model), before)


def test_disabled_adapters_are_not_fused() -> None:
    model = Small()
    put(model)
    enable(model, False)
    with pytest.raises(FuseError, match=r"disabled: call `enable_lora\(\)`"):
        fuse(model)


def test_a_strength_for_one_call_does_not_reach_fused_adapters_and_says_so() -> None:
    model = Small()
    put(model)
    fuse(model)
    before = snapshot(model)
    with pytest.raises(FuseError, match=r"0\.5 for this call cannot reach 'toy': fused"):
        model(small_input(), cross_attention_kwargs={"scale": 0.5})
    check_same(snapshot(model), before)
    model(small_input(), cross_attention_kwargs={"scale": 1.0})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_safe_fusing_of_numbers_that_are_not_finite_fuses_nothing(bad: float) -> None:
    model = Small()
    deltas = random_deltas(model)
    deltas["out"].tensors()["up"][1, 1] = bad
    put(model, deltas=deltas)
    before = snapshot(model)
    with pytest.raises(FuseError, match=r"`out\.weight` would not be finite: nothing was fused"):
        fuse(model, safe=True)
    check_same(snapshot(model), before)
    fuse(model)
    assert not torch.isfinite(model.out.weight).all()
    unfuse(model)
    check_equal(weights(model), weights(Small()))


def test_safe_fusing_sees_what_overflows_in_the_weights_dtype() -> None:
    model = Small().half()
    put(model, strength=1e6)
    with pytest.raises(FuseError, match="would not be finite"):
        fuse(model, safe=True)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (nn.Parameter(torch.zeros(7, 5, dtype=torch.int8), requires_grad=False), r"Tensor of torch\.int8"),
        (nn.Parameter(torch.zeros(7, 5).to(torch.float8_e4m3fn), requires_grad=False), "float8"),
        (nn.Parameter(torch.zeros(18, 1, dtype=torch.uint8), requires_grad=False), "without loss"),
        (nn.Parameter(torch.zeros(7, 5, device="meta")), "`out` is offloaded"),
    ],
    ids=["int8", "float8", "packed", "meta"],
)
def test_a_weight_that_cannot_take_a_delta_without_loss_is_refused(
    weight: nn.Parameter, message: str
) -> None:
    model = Small()
    put(model, deltas=random_deltas(model))
    model.out.weight = weight
    before = weights(model)["conv"]
    with pytest.raises(FuseError, match=message):
        fuse(model)
    assert torch.equal(model.conv.weight, before), "what was fused before the refusal is taken back"


# --- memory that is used again --------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [True, False])
def test_a_weight_that_two_layers_share_is_not_fused_for_both(at_once: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    original = model[0].get_parameter("weight").detach().clone()
    deltas = random_deltas(model)
    put(model, "first", deltas={"0": deltas["0"]})
    put(model, "second", deltas={"1": deltas["1"]})
    if not at_once:
        fuse(model, ["first"])
    before = snapshot(model)
    with pytest.raises(FuseError, match=r"`0\.weight` and `1\.weight` are one parameter"):
        fuse(model, ["first", "second"] if at_once else ["second"])
    check_same(snapshot(model), before)
    unfuse(model)
    assert torch.equal(model[0].get_parameter("weight"), original)


def test_fusing_again_writes_into_the_memory_of_the_last_time() -> None:
    model = Small()
    put(model)
    fuse(model)
    memory = model.out.weight.data_ptr()
    unfuse(model)
    fuse(model, scale=0.5)
    assert model.out.weight.data_ptr() == memory


@pytest.mark.parametrize("how", ["cast", "other memory", "another parameter"])
def test_what_was_moved_since_it_was_fused_gets_its_original_back(how: str) -> None:
    model = Small()
    put(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fuse(model)
    memory = {parameter.data_ptr() for parameter in model.parameters()}
    for parameter in model.parameters():
        if how == "other memory":
            parameter.data = parameter.data.clone()
    if how == "another parameter":
        model.out.weight = nn.Parameter(model.out.weight.data.clone())
    if how == "cast":
        model.double()
        held = [one for one in gc.get_objects() if type(one) is Tensor and one.dtype == torch.float32]
        assert memory.isdisjoint(one.data_ptr() for one in held)  # fused memory that nobody needs any more
        model.float()
    unfuse(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("is_fused", [False, True])
def test_weights_that_are_loaded_into_a_fused_model_are_said_to_go(
    is_fused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = Small()
    put(model, "a style")
    if is_fused:
        fuse(model)
    model.load_state_dict(model.state_dict())
    said = [record.getMessage() for record in caplog.records if record.name == "lorry"]
    assert [text.partition(":")[0] for text in said] == is_fused * [
        "Weights were loaded into this Small while adapters (a style) are fused into it"
    ]


@pytest.mark.parametrize("how", ["tensor", "storage"])
def test_fused_weights_that_somebody_took_hold_of_are_not_written_over(how: str) -> None:
    model = Small()
    put(model)
    fuse(model)
    taken = model.state_dict()["out.weight"]
    before, memory = taken.clone(), taken.data_ptr()
    held = taken if how == "tensor" else taken.untyped_storage()
    del taken
    unfuse(model)
    fuse(model, scale=0.5)
    assert model.out.weight.data_ptr() != memory
    assert torch.equal(torch.empty(0).set_(held).view(7, 5), before)


def test_the_memory_kept_for_the_next_time_goes_with_an_adapter() -> None:
    model = Small()
    put(model, "first")
    put(model, "second", seed=1)
    bare = state_of(model).nbytes
    fuse(model, ["first"])
    unfuse(model)
    assert state_of(model).nbytes > bare
    with changing(model) as (state, undo):
        state.remove(["first"], undo)
    assert state_of(model).nbytes < bare


def test_the_memory_kept_for_the_next_time_stays_where_an_adapter_is_not_taken_off_after_all() -> None:
    model = Small()
    put(model, "first")
    put(model, "second", seed=1)
    fuse(model, ["first"])
    memory = model.out.weight.data_ptr()
    unfuse(model)

    def stop_at_the_end() -> None:
        with changing(model) as (state, undo):
            state.remove(["first"], undo)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_at_the_end()
    time.sleep(0.1)  # for a thread that should not be there
    assert state_of(model)._weights._spare
    fuse(model, ["first"])
    assert model.out.weight.data_ptr() == memory


def test_the_memory_kept_for_the_next_time_goes_back_to_the_system() -> None:
    model = Small()
    put(model, "first")
    put(model, "second", seed=1)
    fuse(model, ["first"])
    with changing(model) as (state, undo):
        state.unfuse(undo)
        fused = {name: weakref.ref(one) for name, one in state._weights._spare.items()}
        state.remove(["first"], undo)
    deadline = time.monotonic() + 30
    assert fused
    while any(one() is not None for one in fused.values()):
        assert time.monotonic() < deadline, "a thread gives it back, and has not"
        time.sleep(0.01)


@pytest.mark.parametrize("strengths", [(1.0, 1.0), (0.7, -0.3), (0.0, 0.5)], ids=str)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_weights_of_half_precision_are_rounded_once(
    dtype: torch.dtype, device: str, strengths: tuple[float, float]
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    original = torch.randn(320, 256).to(device, dtype)
    deltas = [(random_delta((320, 256), n, 8, dtype=dtype), s) for n, s in enumerate(strengths)]
    fused = fused_parameter(original, deltas)
    exact = original.double().cpu() + sum(s * delta.weight(dtype=torch.float64) for delta, s in deltas)
    wrong = (fused.cpu() != exact.to(dtype)).double().mean()
    assert float(wrong) < 0.01  # rounding the delta first gives more than a tenth


def test_beside_weights_without_originals_only_who_needs_the_base_is_refused() -> None:
    model, shape = Small(), (5, 16)
    base = model.get_submodule("block.to_q").get_parameter("weight").detach().clone()
    put(model, "fused", deltas={"block.to_q": random_delta(shape, 0)})
    full = FullDelta(0.1 * torch.randn(shape))
    put(model, "full", deltas={"block.to_q": full})
    fuse(model, ["fused"], originals="none")
    layer, x = model.get_submodule("block.to_q"), torch.randn(3, 16)
    exact = base + random_delta(shape, 0).weight() + full.weight()
    check_near(layer(x), x @ exact.T + layer.get_parameter("bias"), 1e-5)
    before = snapshot(model)
    turning = DoraDelta(random_delta(shape, 1), torch.ones(5))
    with pytest.raises(FuseError, match=r'needs the weight as it was.*originals="none"'):
        put(model, "turning", deltas={"block.to_q": turning})
    check_same(snapshot(model), before)


def test_a_cpu_that_multiplies_halves_slowly_fuses_them_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(fusing, "_rounds_once", lambda *_: True)
    for name in ("_add_mixed", "_add_widened"):
        monkeypatch.setattr(fusing, name, lambda *_, name=name: taken.append(name))
    start, deltas = torch.ones(64, 64).bfloat16(), [(random_delta((64, 64), 0, dtype=torch.bfloat16), 0.5)]
    for fast in (True, False):
        monkeypatch.setattr(fusing, "_multiplies_bfloat16", lambda fast=fast: fast)
        fused_parameter(start, deltas)
    assert taken == ["_add_mixed", "_add_widened"]


@pytest.mark.parametrize("what", ["os.posix_fallocate", "tempfile.TemporaryFile"])
def test_originals_for_which_the_disk_has_no_room_are_refused_and_nothing_is_fused(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of a file that has no room ends the process when it is written (SIGBUS)."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    model = Small()
    put(model, "a", 1.0)
    before = snapshot(model)
    monkeypatch.setattr(what, full)
    with pytest.raises(FuseError, match=r"temporary file, which cannot be written \(No space left.*TMPDIR"):
        fuse(model, originals="disk")
    check_same(snapshot(model), before)
    fuse(model)
