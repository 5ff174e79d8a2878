"""LoRAs that begin out of the base weight: PiSSA and OLoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.func import functional_call

from lorry.algebra import MovedDelta
from lorry.errors import StateError, UnsupportedAdapterError
from lorry.files import read_header, read_safetensors
from lorry.patching import Strength
from lorry.training import AdapterConfig, add_adapter, get_adapter
from lorry.training.saving import get_deltas
from lorry.training.starts import orthonormal_factors, principal_factors
from models import tiny_text_encoder, tiny_unet, unet_inputs
from small import PATHS, Small, changing, check_near, small_input
from snapshots import check_same, snapshot
from training.runs import drawn, run

STARTS = ("pissa", "olora")
SHAPES = [(40, 12), (12, 40), (20, 20)]


def matrix(shape: tuple[int, int], falling: float = 1.0) -> Tensor:
    """A random matrix; `falling` below 1 makes each singular value so many times the one before."""
    u, _, v = torch.linalg.svd(
        torch.randn(shape, generator=torch.Generator().manual_seed(3)), full_matrices=False
    )
    return u * falling ** torch.arange(min(shape)) @ v


def config(start: str, **changes: Any) -> AdapterConfig:
    return AdapterConfig(
        **{"rank": 3, "alpha": 2.0, "target_modules": list(PATHS), "initialisation": start} | changes
    )


def stirred(model: nn.Module, start: str) -> list[nn.Parameter]:
    """Such an adapter on every layer of a `Small`, moved away from where it began."""
    parameters = add_adapter(model, config(start), "toy")
    with torch.no_grad():
        for number, parameter in enumerate(parameters):
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)), alpha=0.2
            )
    return parameters


# --- the factors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_principal_factors_are_the_best_approximation_and_share_the_singular_values(
    shape: tuple[int, int],
) -> None:
    weight = matrix(shape, 0.8).double()
    up, down = principal_factors(weight, 5, scale=0.5)
    _, s, _ = torch.linalg.svd(weight)
    left = torch.linalg.matrix_norm(weight - 0.5 * up @ down)
    torch.testing.assert_close(left, s[5:].square().sum().sqrt())
    for gram in (up.T @ up, down @ down.T):
        torch.testing.assert_close(gram, torch.diag(s[:5] / 0.5))


def test_each_iteration_brings_the_fast_decomposition_nearer_to_the_exact_one() -> None:
    weight = matrix((120, 100), 0.97).double()

    def error(iterations: int) -> float:
        up, down = principal_factors(weight, 5, 1.0, iterations, torch.Generator().manual_seed(0))
        return float(torch.linalg.matrix_norm(weight - up @ down))

    assert error(0) < error(4) < error(2) < error(1)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_fast_decomposition_is_near_the_exact_one(shape: tuple[int, int]) -> None:
    weight = matrix(shape, 0.5)
    random = torch.Generator().manual_seed(0)
    up, down = principal_factors(weight, 5, 0.5, 8, random)
    exact_up, exact_down = principal_factors(weight, 5, 0.5)
    check_near(up @ down, exact_up @ exact_down, 1e-3)
    again = principal_factors(weight, 5, 0.5, 8, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], up)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthonormal_factors_are_the_first_columns_of_the_qr(shape: tuple[int, int]) -> None:
    weight = matrix(shape).double()
    up, down = orthonormal_factors(weight, 5)
    torch.testing.assert_close(up.T @ up, torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(up @ down[:, :5], weight[:, :5])
    torch.testing.assert_close(up.T @ weight, down)


# --- on a model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", STARTS)
def test_it_begins_as_one_that_changes_nothing_and_leaves_the_base_its_bits(start: str) -> None:
    model = tiny_unet()
    before = {key: t.clone() for key, t in model.state_dict().items()}
    out = model(**unet_inputs(model)).sample.detach()
    add_adapter(model, AdapterConfig(rank=8, target_modules="full", initialisation=start))  # pyright: ignore[reportArgumentType]
    check_near(model(**unet_inputs(model)).sample, out, 1e-5)
    assert all(torch.equal(before[key], t) for key, t in model.state_dict().items())
    deltas = get_deltas(model, "default")
    assert all(isinstance(delta, MovedDelta) and delta.now.tensors()["up"].any() for delta in deltas.values())


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_gradients_are_those_of_the_papers_residual_and_factors_in_float64(
    start: str, strength: float
) -> None:
    model = Small()
    parameters = stirred(model, start)
    with changing(model) as (state, undo):
        state.set_active({"toy": Strength(strength)}, undo)
    model(small_input()).square().sum().backward()
    exact, weights, leaves = Small().double(), {}, []
    for path, delta in get_deltas(model, "toy").items():
        wide = {key: t.detach().double() for key, t in delta.tensors().items()}
        down, up = (wide[key].requires_grad_() for key in ("down", "up"))
        weight = exact.get_submodule(path).get_parameter("weight").detach()
        factor = strength * delta.rank_scale
        residual = weight - factor * (wide["start_up"] @ wide["start_down"].flatten(1)).view_as(weight)
        weights[f"{path}.weight"] = residual + factor * (up @ down.flatten(1)).view_as(weight)
        leaves += [down, up]
    functional_call(exact, weights, small_input().double()).square().sum().backward()
    assert len(parameters) == len(leaves) == 2 * len(PATHS)
    for parameter, leaf in zip(parameters, leaves, strict=True):
        assert parameter.grad is not None
        assert leaf.grad is not None
        check_near(parameter.grad, leaf.grad, 2e-5)


@pytest.mark.parametrize("start", STARTS)
def test_what_is_trained_is_saved_as_a_lora_of_twice_the_rank_that_acts_the_same(start: str) -> None:
    model, other = Small(), Small()
    stirred(model, start)
    adapter = get_adapter({"unet": model}, "toy")
    assert {entry.delta.family for entry in adapter.entries} == {"LoRA"}
    assert {entry.target.path: entry.delta.rank for entry in adapter.entries}["out"] == 6
    with changing(other) as (state, undo):
        state.add("toy", {entry.target.path: entry.delta for entry in adapter.entries}, undo)
        state.set_active({"toy": Strength()}, undo)
    check_near(other(small_input()), model(small_input()), 1e-5)


@pytest.mark.parametrize("start", STARTS)
def test_a_model_is_as_it_was_when_it_is_gone_and_off_when_it_is_switched_off(start: str) -> None:
    model = Small()
    model.requires_grad_(False)
    before, bare = snapshot(model), model(small_input())
    stirred(model, start)
    with changing(model) as (state, undo):
        state.set_enabled(False, undo)
    assert torch.equal(model(small_input()), bare)
    with changing(model) as (state, undo):
        state.clear(undo)
    check_same(snapshot(model), before)


@pytest.mark.parametrize("given", ["pissa", "pissa_niter_6", "olora"])
def test_a_configuration_of_peft_makes_the_numbers_of_peft(given: Any) -> None:
    settings = LoraConfig(
        r=3, lora_alpha=6, target_modules=["to_q", "fc1", "q_proj"], init_lora_weights=given
    )
    ours, theirs = tiny_text_encoder(), tiny_text_encoder()
    add_adapter(ours, settings)
    theirs.add_adapter(settings)
    tokens = torch.tensor([[0, 5, 9, 1]])
    for path, delta in get_deltas(ours, "default").items():
        layer = theirs.get_submodule(path)
        factors = delta.tensors()
        if given != "pissa_niter_6":
            product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            check_near(factors["up"] @ factors["down"], product, 1e-4)
        layer.lora_A["default"].weight.data.copy_(factors["down"])
        layer.lora_B["default"].weight.data.copy_(factors["up"])
        removed = delta.rank_scale * factors["start_up"] @ factors["start_down"]
        layer.base_layer.weight.data.copy_(ours.get_submodule(path)._parameters["weight"] - removed)
        for one in (factors["up"], layer.lora_B["default"].weight):
            one.data.mul_(1.5)
    check_near(ours(tokens).last_hidden_state, theirs(tokens).last_hidden_state, 1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "loha"}, "`initialisation`: pissa is for LoRA"),
        ({"initialisation": "olora", "iterations": 2}, "`iterations` are for pissa"),
        ({"initialisation": "pisa"}, "expected one of kaiming, .*Did you mean 'pissa'"),
    ],
)
def test_what_has_no_such_beginning_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StateError, match=message):
        config("pissa", **changes)


@pytest.mark.parametrize("given", ["eva", "loftq", "pissa_niter_x", False])
def test_other_beginnings_of_peft_are_refused(given: Any) -> None:
    settings = LoraConfig(r=2, target_modules=["out"])
    settings.init_lora_weights = given
    with pytest.raises(UnsupportedAdapterError, match="`init_lora_weights="):
        AdapterConfig.of(settings)


def test_a_packed_weight_is_refused_and_nothing_is_changed() -> None:
    model = Small()
    model.out.weight = nn.Parameter(torch.zeros(18, 1, dtype=torch.uint8), requires_grad=False)
    before = snapshot(model)
    with pytest.raises(StateError, match="`out`: pissa starts from the weight, which is packed here"):
        add_adapter(model, config("pissa"))
    check_same(snapshot(model), before)


# --- in a run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{"init": "pissa"}, {"init": "pissa", "init_iterations": 2}, {"init": "olora"}]
)
def test_the_file_of_a_run_is_a_plain_lora_that_diffusers_draws_the_same_with(
    changes: dict[str, Any], sd: Path, data: Path, tmp_path: Path
) -> None:
    result = run(data, sd, tmp_path, alpha=1.0, targets="blocks+conv", rate=2e-2, **changes)
    tensors = read_safetensors(result.adapter).tensors
    assert all("lora_" in key for key in tensors)
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight"
    assert tensors[key].shape[1] == 4
    said = read_header(result.adapter).metadata
    assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("4", "2.0")
    ours, theirs = (drawn(sd, result.adapter, by_lorry=by_lorry) for by_lorry in (True, False))
    assert (ours - theirs).abs().max() < 1e-4
