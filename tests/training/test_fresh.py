"""Fresh adapters to train: what they are, that they learn as they must, and what of them is saved."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lorry.errors import DuplicateAdapterError, StateError, UnknownAdapterError, UnsupportedAdapterError
from lorry.patching import Strength
from lorry.training import AdapterConfig, add_adapter, get_adapter_metadata, get_adapter_state_dict
from models import random_deltas, tiny_text_encoder, tiny_unet, unet_inputs
from small import PATHS, Small, changing, check_near, put, small_input, state_of, with_deltas
from snapshots import check_same, snapshot

EVERY = AdapterConfig(rank=4, alpha=2.0, target_modules=list(PATHS))


def trained(model: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    """A fresh adapter on every layer of a `Small`, its up factors no longer zero; its parameters by name."""
    parameters = add_adapter(model, EVERY, "toy", dtype=dtype)
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    return {name: parameter for name, parameter in model.named_parameters() if "lorry_" in name}


# --- what is put on -----------------------------------------------------------------------------------------------


def test_a_fresh_adapter_changes_no_output() -> None:
    model = tiny_unet()
    out = model(**unet_inputs(model)).sample
    add_adapter(model, AdapterConfig())
    assert torch.equal(model(**unet_inputs(model)).sample, out)


def test_its_parameters_are_the_only_ones_to_be_trained() -> None:
    model = Small()
    returned = add_adapter(model, EVERY)
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in returned} == {id(parameter) for parameter in wanted}
    assert len(returned) == 2 * len(PATHS)


def test_only_the_modules_that_are_named_get_factors_of_their_shape() -> None:
    model = tiny_unet()
    add_adapter(model, AdapterConfig(rank=3, target_modules=["to_q", "conv1"]))
    tensors = get_adapter_state_dict(model)
    paths = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
    assert paths == {path for path, _ in model.named_modules() if path.endswith((".to_q", ".conv1"))}
    for path in paths:
        weight = model.get_submodule(path).get_parameter("weight")
        assert tensors[f"{path}.lora_A.weight"].shape == (3, *weight.shape[1:])
        assert tensors[f"{path}.lora_B.weight"].shape == (weight.shape[0], 3, *(1 for _ in weight.shape[2:]))


def test_one_regular_expression_is_for_whole_paths() -> None:
    model = Small()
    add_adapter(model, AdapterConfig(target_modules=r"block\..*"))
    assert set(adapter_paths(model)) == {"block.grouped", "block.to_q"}


def adapter_paths(model: nn.Module, name: str = "default") -> list[str]:
    return list(state_of(model).adapters[name].deltas)


def test_all_linear_means_linear_layers_only() -> None:
    model = Small()
    add_adapter(model, AdapterConfig(target_modules="all-linear"))
    assert set(adapter_paths(model)) == {"block.to_q", "out"}


def test_ranks_and_alphas_by_pattern_go_before_the_common_ones() -> None:
    model = Small()
    config = AdapterConfig(
        rank=4,
        alpha=2.0,
        target_modules=list(PATHS),
        rank_pattern={"to_q": 2, r"^out": 1},
        alpha_pattern={"conv": 8.0},
    )
    add_adapter(model, config)
    deltas = state_of(model).adapters["default"].deltas
    assert {path: deltas[path].rank for path in PATHS} == {
        "conv": 4,
        "block.grouped": 4,
        "block.to_q": 2,
        "out": 1,
    }
    scales = {path: deltas[path].rank_scale for path in PATHS}
    assert scales == {"conv": 2.0, "block.grouped": 0.5, "block.to_q": 1.0, "out": 2.0}


@pytest.mark.parametrize("initialisation", ["kaiming", "gaussian"])
def test_down_factors_start_as_their_initialisation_says(initialisation: str) -> None:
    model = nn.Sequential(nn.Linear(400, 7))
    config = AdapterConfig(rank=50, target_modules=["0"], initialisation=initialisation)  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(3)
    add_adapter(model, config, generator=generator)
    tensors = get_adapter_state_dict(model)
    down, up = tensors["0.lora_A.weight"], tensors["0.lora_B.weight"]
    assert not up.any()
    expected = 1 / 50 if initialisation == "gaussian" else 1 / (3 * 400) ** 0.5
    assert abs(float(down.std()) / expected - 1) < 0.02
    twin = nn.Sequential(nn.Linear(400, 7))
    add_adapter(twin, config, generator=torch.Generator().manual_seed(3))
    assert torch.equal(get_adapter_state_dict(twin)["0.lora_A.weight"], down)


# --- learning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [None, "reentrant", "not reentrant"])
def test_gradients_of_the_factors_are_those_through_the_fused_parameter(checkpointing: str | None) -> None:
    model, exact = Small().double(), Small().double()
    parameters = trained(model, torch.float64)
    exact.requires_grad_(False)
    factors = {name: parameter.detach().clone().requires_grad_() for name, parameter in parameters.items()}
    fused: dict[str, Tensor] = {}
    for path in PATHS:
        weight = exact.get_submodule(path).get_parameter("weight")
        up, down = factors[f"{path}.lorry_toy_up"], factors[f"{path}.lorry_toy_down"]
        fused[f"{path}.weight"] = weight + 0.5 * (up @ down.flatten(1)).reshape(weight.shape)
    x, y = (small_input(dtype=torch.float64).requires_grad_() for _ in range(2))
    reentrant = checkpointing == "reentrant"
    out = checkpoint(model, x, use_reentrant=reentrant) if checkpointing else model(x)
    assert isinstance(out, Tensor)
    expected = torch.func.functional_call(exact, fused, (y,))
    torch.testing.assert_close(out, expected, rtol=1e-13, atol=1e-14)
    out.pow(3).sum().backward()
    expected.pow(3).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-11, atol=1e-13)
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, factors[name].grad, rtol=1e-11, atol=1e-13)


def test_a_few_steps_of_an_optimiser_lower_the_loss_and_leave_the_base_alone() -> None:
    model = Small()
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimiser = torch.optim.AdamW(add_adapter(model, EVERY), lr=1e-2)
    goal = small_input(1).flatten(1)[:, :7]
    losses = []
    for _ in range(20):
        loss = (model(small_input()) - goal).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    for name, tensor in base.items():
        assert torch.equal(model.get_parameter(name), tensor), name


def test_float32_factors_train_on_a_half_precision_base() -> None:
    model = Small().to(torch.bfloat16)
    parameters = add_adapter(model, EVERY)
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    out = model(small_input(dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in parameters
    )


def test_training_goes_on_under_autocast() -> None:
    model = Small()
    parameters = trained(model)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(small_input())
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(parameter.grad is not None for parameter in parameters.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_scale_of_a_trained_adapter_stays_float32_when_the_model_is_cast(dtype: torch.dtype) -> None:
    model = Small()
    add_adapter(model, AdapterConfig(rank=3, alpha=1.0, target_modules=["out"]))
    model.to(dtype)
    scale = model.out.get_buffer("lorry_default_scale")
    assert scale.dtype == torch.float32
    assert torch.equal(scale, torch.full((3,), 1 / 3))


def test_a_loaded_adapter_and_a_trained_one_act_together() -> None:
    model = Small()
    loaded = put(model, "style", 0.5)
    trained(model)
    with changing(model) as (state, undo):
        state.set_active({"style": Strength(0.5), "toy": Strength(0.25)}, undo)
    deltas = state_of(model).adapters["toy"].deltas
    added = {
        p: 0.5 * loaded[p].weight(dtype=torch.float64) + 0.25 * deltas[p].weight(dtype=torch.float64).detach()
        for p in PATHS
    }
    check_near(model(small_input()), with_deltas(Small(), added)(small_input().double()), 2e-6)


def test_a_trained_adapter_can_be_switched_off_fused_and_unfused() -> None:
    model = Small()
    bare = model(small_input())
    parameters = trained(model)
    out = model(small_input())
    with changing(model) as (state, undo):
        state.set_enabled(False, undo)
    assert torch.equal(model(small_input()), bare)
    assert all("lorry_" not in name for name, _ in model.named_parameters())
    with changing(model) as (state, undo):
        state.set_enabled(True, undo)
        state.fuse(undo)
    check_near(model(small_input()), out, 2e-6)
    with changing(model) as (state, undo):
        state.unfuse(undo)
    assert torch.equal(model(small_input()), out)
    now = {name: parameter for name, parameter in model.named_parameters() if "lorry_" in name}
    assert {name: id(parameter) for name, parameter in now.items()} == {
        n: id(p) for n, p in parameters.items()
    }


# --- nothing is left, nothing shows --------------------------------------------------------------------------------


def test_trained_parameters_never_show_in_a_state_dict_and_one_loads_back_strictly() -> None:
    model = Small()
    keys = list(model.state_dict())
    trained(model)
    assert list(model.state_dict()) == keys
    model.load_state_dict(Small(seed=1).state_dict(), strict=True)


def test_a_model_is_as_it_was_but_frozen_when_its_trained_adapter_is_gone() -> None:
    model = Small()
    model.requires_grad_(False)
    before = snapshot(model)
    trained(model)
    with changing(model) as (state, undo):
        state.clear(undo)
    check_same(snapshot(model), before)


def test_a_deep_copy_of_a_model_in_training_has_parameters_of_its_own() -> None:
    model = Small()
    trained(model)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(small_input()), model(small_input()))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert bool(model(small_input()).any())
    assert state_of(twin).adapters["toy"].deltas["out"].tensors()["up"] is twin.out.get_parameter(
        "lorry_toy_up"
    )


# --- what is refused ----------------------------------------------------------------------------------------------


def test_targets_that_match_nothing_are_refused_and_change_nothing() -> None:
    model = Small()
    before = snapshot(model)
    with pytest.raises(StateError, match=r"No layer of Small matches the targets \('nothing',\)"):
        add_adapter(model, AdapterConfig(target_modules=("nothing",)))
    check_same(snapshot(model), before)


def test_a_taken_name_is_refused_and_changes_nothing() -> None:
    model = Small()
    put(model, "toy")
    before = snapshot(model)
    with pytest.raises(DuplicateAdapterError, match="'toy' is loaded already"):
        add_adapter(model, EVERY, "toy")
    check_same(snapshot(model), before)


@pytest.mark.parametrize("name", ["", "a.b", 7])
def test_names_that_would_break_keys_are_refused(name: object) -> None:
    with pytest.raises(StateError, match="cannot be an adapter name"):
        add_adapter(Small(), EVERY, name)  # pyright: ignore[reportArgumentType]


def test_a_rank_below_one_is_refused() -> None:
    with pytest.raises(StateError, match="`rank`: expected at least 1, got 0"):
        AdapterConfig(rank=0)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lora_dropout", 0.1),
        ("bias", "all"),
        ("modules_to_save", ["out"]),
        ("lora_bias", True),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(setting: str, value: Any) -> None:
    with pytest.raises(UnsupportedAdapterError, match=f"`{setting}="):
        AdapterConfig.of(LoraConfig(r=2, target_modules=["out"], **{setting: value}))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("exclude_modules", ["out"]), ("layers_to_transform", [0]), ("target_parameters", ["conv.weight"])],
)
def test_settings_that_choose_other_layers_are_not_passed_over(setting: str, value: Any) -> None:
    with pytest.raises(UnsupportedAdapterError, match=f"`{setting}="):
        AdapterConfig.of(LoraConfig(r=2, target_modules=["out", "to_q"], **{setting: value}))


def test_something_else_than_a_configuration_is_refused() -> None:
    with pytest.raises(StateError, match=r"Expected an AdapterConfig or a PEFT LoraConfig, got dict"):
        AdapterConfig.of({"r": 4})


def test_an_adapter_that_is_not_loaded_cannot_be_saved() -> None:
    with pytest.raises(UnknownAdapterError, match=r"'default' is loaded \(loaded: none\)"):
        get_adapter_state_dict(Small())
    model = Small()
    put(model, "toy")
    with pytest.raises(UnknownAdapterError, match="Did you mean 'toy'"):
        get_adapter_metadata(model, "toys")


# --- with PEFT ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "targets", "ranks"),
    [
        (tiny_unet, ["to_k", "conv2", "proj_in"], {"conv2": 2}),
        (tiny_text_encoder, ["q_proj", "fc1"], {"fc1": 2}),
    ],
)
def test_a_configuration_of_peft_makes_the_same_factors_as_peft(
    make: type[nn.Module], targets: list[str], ranks: dict[str, int]
) -> None:
    config = LoraConfig(r=3, lora_alpha=6, target_modules=targets, rank_pattern=ranks)
    ours, theirs = make(), make()
    add_adapter(ours, config)
    theirs.add_adapter(config)  # pyright: ignore[reportCallIssue]
    expected = get_peft_model_state_dict(theirs, adapter_name="default")
    found = get_adapter_state_dict(ours)
    assert {k: t.shape for k, t in found.items()} == {k: t.shape for k, t in expected.items()}


def test_the_metadata_makes_the_same_adapter_again_in_peft() -> None:
    model = tiny_unet()
    config = AdapterConfig(
        rank=4, alpha=2.0, target_modules=["to_q", "conv1"], rank_pattern={"conv1": 2}, rank_stabilised=True
    )
    parameters = add_adapter(model, config)
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.3)
    metadata = get_adapter_metadata(model)
    peft_model = tiny_unet()
    peft_model.add_adapter(LoraConfig(**{k: v for k, v in metadata.items() if k != "peft_type"}))
    names = {key.replace(".default.", "."): parameter for key, parameter in peft_model.named_parameters()}
    with torch.no_grad():
        for key, tensor in get_adapter_state_dict(model).items():
            names.pop(key).copy_(tensor)
    assert not any("lora_" in key for key in names), "PEFT made factors that the adapter does not have"
    inputs = unet_inputs(model)
    with torch.no_grad():
        check_near(model(**inputs).sample, peft_model(**inputs).sample, 1e-5)


def test_a_saved_adapter_shares_memory_and_has_no_gradient() -> None:
    model = Small()
    trained(model)
    tensors = get_adapter_state_dict(model, "toy")
    assert not any(tensor.requires_grad for tensor in tensors.values())
    assert tensors["out.lora_A.weight"].data_ptr() == model.out.get_parameter("lorry_toy_down").data_ptr()


def test_a_loaded_adapter_is_saved_with_its_core_multiplied_in() -> None:
    model = Small()
    deltas = put(model, "toy", deltas=random_deltas(model, ends=("conv",), tucker=True, alpha=2.0))
    tensors = get_adapter_state_dict(model, "toy")
    up, down = tensors["conv.lora_B.weight"], tensors["conv.lora_A.weight"]
    assert up.shape == (6, 3, 1, 1)
    product = deltas["conv"].rank_scale * (up.flatten(1) @ down.flatten(1)).reshape(6, 3, 3, 3)
    check_near(product, deltas["conv"].weight(dtype=torch.float64), 1e-6)
