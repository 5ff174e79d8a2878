"""Every family that can be trained: it starts as nothing, and its gradients are those of the fused weight."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from lorry.algebra import DoraDelta
from lorry.binding import weight_shape
from lorry.errors import StateError
from lorry.patching import Strength
from lorry.training import AdapterConfig, add_adapter, get_adapter
from lorry.training.adapter_config import Family
from lorry.training.saving import get_deltas
from models import tiny_text_encoder, tiny_unet, unet_inputs
from small import PATHS, Small, changing, check_near, small_input
from snapshots import check_same, snapshot

FAMILIES: tuple[Family, ...] = get_args(Family)
OTHERS = tuple(family for family in FAMILIES if family != "lora")


def config(family: Family, **changes: Any) -> AdapterConfig:
    return AdapterConfig(
        **{"rank": 2, "alpha": 1.0, "target_modules": list(PATHS), "family": family} | changes
    )


def stirred(model: nn.Module, family: Family, **changes: Any) -> list[nn.Parameter]:
    """A trainable adapter on every layer of a `Small`, moved away from where it starts."""
    random = torch.Generator().manual_seed(5)
    parameters = add_adapter(model, config(family, **changes), "toy", generator=random)
    with torch.no_grad():
        for number, parameter in enumerate(parameters):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(noise, alpha=0.2)
    return parameters


def loss_of(out: Tensor) -> Tensor:
    """A number that depends on every output in its own way."""
    return (
        out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    ).sum() + out.square().mean()


def exact_gradients(base: nn.Module, model: nn.Module, strength: float = 1.0) -> list[Tensor]:
    """The gradients of the adapter "toy" of `model`, by autograd on the fused weights of `base` in float64."""
    exact = Small().double()
    exact.load_state_dict({key: tensor.double() for key, tensor in base.state_dict().items()})
    weights, leaves = {}, []
    for path, delta in get_deltas(model, "toy").items():
        wide = {k: t.detach().double().requires_grad_() for k, t in delta.tensors().items()}
        leaves += wide.values()
        weight = exact.get_submodule(path).get_parameter("weight").detach()
        weights[f"{path}.weight"] = weight + delta.with_tensors(wide).weight(weight, torch.float64, strength)
    loss_of(functional_call(exact, weights, small_input().double())).backward()
    return [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_adapter_of_any_family_changes_nothing(family: Family) -> None:
    model = tiny_unet()
    out = model(**unet_inputs(model)).sample.detach()
    add_adapter(model, AdapterConfig(family=family, target_modules="full"))
    check_near(model(**unet_inputs(model)).sample, out, 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_gradients_are_those_of_the_fused_weight_in_float64(family: Family, strength: float) -> None:
    model = Small()
    parameters = stirred(model, family)
    with changing(model) as (state, undo):
        state.set_active({"toy": Strength(strength)}, undo)
    loss_of(model(small_input())).backward()
    for parameter, expected in zip(parameters, exact_gradients(Small(), model, strength), strict=True):
        assert parameter.grad is not None
        check_near(parameter.grad, expected, 2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_half_precision_base_are_near_those_in_float64(family: Family) -> None:
    model = Small().bfloat16()
    base = Small().bfloat16()
    parameters = stirred(model, family)
    assert {p.dtype for p in parameters} == {torch.float32}
    loss_of(model(small_input().bfloat16()).float()).backward()
    for parameter, expected in zip(parameters, exact_gradients(base, model), strict=True):
        assert parameter.grad is not None
        error = (parameter.grad.double() - expected).norm() / expected.norm()
        assert error < 0.06, f"{error:.3f}"


@pytest.mark.parametrize("family", OTHERS)
def test_gradient_checkpointing_gives_the_same_gradients(family: Family) -> None:
    plain, saving = Small(), Small()
    expected, found = stirred(plain, family), stirred(saving, family)
    loss_of(plain(small_input())).backward()
    loss_of(checkpoint(saving, small_input(), use_reentrant=False)).backward()
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_acts_the_same_when_it_is_loaded(family: Family) -> None:
    model, other = Small(), Small()
    stirred(model, family)
    adapter = get_adapter({"unet": model}, "toy")
    with changing(other) as (state, undo):
        state.add("toy", {entry.target.path: entry.delta for entry in adapter.entries}, undo)
        state.set_active({"toy": Strength()}, undo)
    check_near(other(small_input()), model(small_input()), 2e-6)


@pytest.mark.parametrize("family", OTHERS)
def test_its_parameters_are_the_models_while_it_acts_and_never_in_a_state_dict(family: Family) -> None:
    model = Small()
    keys = list(model.state_dict())
    parameters = stirred(model, family)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in parameters}
    assert list(model.state_dict()) == keys
    with changing(model) as (state, undo):
        state.set_enabled(False, undo)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("family", OTHERS)
def test_a_model_is_as_it_was_when_an_adapter_of_any_family_is_gone(family: Family) -> None:
    model = Small()
    model.requires_grad_(False)
    before = snapshot(model)
    stirred(model, family)
    model(small_input())
    with changing(model) as (state, undo):
        state.clear(undo)
    check_same(snapshot(model), before)


def test_two_families_are_trained_beside_each_other_and_beside_a_loaded_adapter() -> None:
    model = Small()
    stirred(model, "oft")
    others = add_adapter(model, config("lora"), "second")
    with torch.no_grad():
        for parameter in others:
            parameter.normal_(std=0.3)
    with changing(model) as (state, undo):
        state.set_active({"toy": Strength(), "second": Strength(0.5)}, undo)
    expected = Small()
    with torch.no_grad():
        for name, strength in (("toy", 1.0), ("second", 0.5)):
            for path, delta in get_deltas(model, name).items():
                weight = Small().get_submodule(path).get_parameter("weight")
                expected.get_submodule(path).get_parameter("weight").add_(
                    delta.weight(weight), alpha=strength
                )
    check_near(model(small_input()), expected(small_input()), 1e-5)


def test_convolutions_have_a_rank_and_an_alpha_of_their_own() -> None:
    model = Small()
    add_adapter(model, config("lora", rank=4, alpha=2.0, conv_rank=3, conv_alpha=1.5), "toy")
    found = {path: (delta.rank, delta.rank_scale) for path, delta in get_deltas(model, "toy").items()}
    assert found == {
        "conv": (3, 0.5),
        "block.grouped": (3, 0.5),
        "block.to_q": (4, 0.5),
        "out": (4, 0.5),
    }


@pytest.mark.parametrize("changes", [{}, {"family": "dora"}, {"initialisation": "pissa"}], ids=str)
def test_without_an_alpha_a_rank_stabilised_adapter_has_that_of_its_rank(changes: dict[str, Any]) -> None:
    model = Small()
    add_adapter(
        model, AdapterConfig(4, target_modules=["block.to_q"], rank_stabilised=True, **changes), "toy"
    )
    assert {delta.rank_scale for delta in get_deltas(model, "toy").values()} == {2.0}


def test_a_configuration_of_peft_with_dora_makes_the_numbers_of_peft() -> None:
    settings = LoraConfig(r=3, lora_alpha=6, target_modules=["to_q", "fc1", "q_proj"], use_dora=True)
    ours, theirs = tiny_text_encoder(), tiny_text_encoder()
    add_adapter(ours, settings)
    theirs.add_adapter(settings)
    with torch.no_grad():
        for path, delta in get_deltas(ours, "default").items():
            assert isinstance(delta, DoraDelta)
            layer = theirs.get_submodule(path)
            delta.inner.tensors()["up"].normal_(std=0.3)
            layer.lora_A["default"].weight.copy_(delta.inner.tensors()["down"])
            layer.lora_B["default"].weight.copy_(delta.inner.tensors()["up"])
    tokens = torch.tensor([[0, 5, 9, 1]])
    check_near(ours(tokens).last_hidden_state, theirs(tokens).last_hidden_state, 1e-5)


@pytest.mark.parametrize(
    ("preset", "inside", "outside"),
    [
        ("attention", "attn1.to_q", "net.2"),
        ("blocks", "net.2", "conv1"),
        ("conv", "conv1", "to_q"),
        ("blocks+conv", "conv1", "time_embedding.linear_1"),
        ("full", "time_embedding.linear_1", None),
    ],
)
def test_presets_choose_layers_by_what_they_are_for(preset: str, inside: str, outside: str | None) -> None:
    model = tiny_unet()
    add_adapter(model, AdapterConfig(target_modules=preset))
    paths = list(get_deltas(model, "default"))
    assert any(path.endswith(inside) for path in paths)
    assert outside is None or not any(path.endswith(outside) for path in paths)
    if preset == "full":
        assert set(paths) == {p for p, m in model.named_modules() if len(weight_shape(m) or ()) > 1}


def test_an_unknown_family_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(StateError, match=r"`family`: expected one of lora, .*Did you mean 'loha'"):
        AdapterConfig(family="lohaa")  # type: ignore[arg-type]


def test_a_family_that_needs_the_weight_is_refused_on_a_packed_one_and_changes_nothing() -> None:
    model = Small()
    model.out.weight = nn.Parameter(torch.zeros(18, 1, dtype=torch.uint8), requires_grad=False)
    before = snapshot(model)
    with pytest.raises(StateError, match=r"`out` \(Linear\): LoKr is trained on the weight itself"):
        add_adapter(model, config("lokr"))
    check_same(snapshot(model), before)
