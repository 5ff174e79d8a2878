"""Adapters that make a model's first layer wider, and adapters for fewer channels than it has."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from torch import Tensor, nn

from lorry.algebra import Delta, FullDelta, LoraDelta, PartsDelta
from lorry.binding import bind
from lorry.errors import FuseError, ShapeMismatchError, StateError
from lorry.patching import Strength, Undo, find_state, get_state
from models import as_adapter, random_delta, tiny_flux_transformer, tiny_unet, unet_inputs
from patching.test_group_offloading import a_machine_with_streams, offload
from pipelines.of_every_family import FAMILIES

__all__ = ["a_machine_with_streams"]

OUT, IN, WIDE = 32, 16, 32
INNER = "single_transformer_blocks.0.attn.to_q"


def control() -> dict[str, Delta]:
    """A control LoRA: its `x_embedder` takes the latents and a picture, and it changes a bias too."""
    wide = PartsDelta(random_delta((OUT, WIDE), 1), FullDelta(torch.linspace(-1, 1, OUT)))
    return {"x_embedder": wide, INNER: random_delta((OUT, OUT), 2)}


def plain() -> dict[str, Delta]:
    return {"x_embedder": random_delta((OUT, IN), 3), INNER: random_delta((OUT, OUT), 4)}


MADE = {"control": control, "plain": plain}


def load(model: nn.Module, name: str, deltas: Mapping[str, Delta]) -> None:
    plan = bind(as_adapter(deltas, "transformer"), {"transformer": model})
    with Undo() as undo:
        get_state(model, undo).add(name, plan.deltas["transformer"], undo)
    act(model, **{name: 1.0})


def act(model: nn.Module, **strengths: float) -> None:
    change(model, "set_active", {name: Strength(value) for name, value in strengths.items()})


def change(model: nn.Module, what: str, *args: Any, **kwargs: Any) -> None:
    state = find_state(model)
    assert state is not None
    with Undo() as undo:
        getattr(state, what)(*args, undo=undo, **kwargs)


def inputs(channels: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    ids = {"txt_ids": torch.zeros(3, 3), "img_ids": torch.zeros(4, 3)}
    texts = {"encoder_hidden_states": noise(1, 3, 24), "pooled_projections": noise(1, 32)}
    return {
        "hidden_states": noise(1, 4, WIDE)[..., :channels],
        "timestep": torch.tensor([0.5]),
        **texts,
        **ids,
    }


@torch.no_grad()
def output(model: Any, channels: int = WIDE) -> Tensor:
    return model(**inputs(channels)).sample


def expected(*, wide: bool = True, **strengths: float) -> Tensor:
    """What a model of its own says whose weights were changed by the formulas alone."""
    model: Any = tiny_flux_transformer()
    layer = model.x_embedder
    if wide:
        padded = torch.cat([layer.weight.detach(), torch.zeros(OUT, WIDE - IN)], dim=1)
        layer.weight, layer.in_features = nn.Parameter(padded), WIDE
    for name, strength in strengths.items():
        for path, delta in MADE[name]().items():
            module = model.get_submodule(path)
            for key in ("weight", "bias"):
                part = delta.part(key)
                if part is not None:
                    full = part.weight() * strength
                    module.get_parameter(key).data[..., : full.shape[-1]] += full
    return output(model, WIDE if wide else IN)


def snapshot(model: Any) -> tuple[Any, ...]:
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layer, config = model.x_embedder, model.config
    return tensors, layer.in_features, config, dict(config), type(layer), layer.weight


def check_same(model: Any, before: tuple[Any, ...]) -> None:
    tensors, inputs_, config, values, cls, weight = before
    assert model.state_dict().keys() == tensors.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name
    assert model.x_embedder.in_features == inputs_
    assert model.config is config
    assert dict(model.config) == values
    assert type(model.x_embedder) is cls
    assert model.x_embedder.weight is weight


def test_a_control_lora_makes_the_model_take_more_channels_and_computes_its_formula() -> None:
    model: Any = tiny_flux_transformer()
    load(model, "control", control())
    assert (model.x_embedder.in_features, model.config.in_channels) == (WIDE, WIDE)
    assert tuple(model.x_embedder.get_parameter("weight").shape) == (OUT, WIDE)
    torch.testing.assert_close(output(model), expected(control=1.0))
    act(model, control=0.3)
    torch.testing.assert_close(output(model), expected(control=0.3))


def test_while_it_does_not_act_the_new_channels_change_nothing() -> None:
    model: Any = tiny_flux_transformer()
    before = output(model, IN)
    load(model, "control", control())
    act(model)
    torch.testing.assert_close(output(model), before)


@pytest.mark.parametrize("order", [("control", "plain"), ("plain", "control")])
def test_it_is_mixed_with_a_regular_one_loaded_before_or_after(order: tuple[str, ...]) -> None:
    model: Any = tiny_flux_transformer()
    for name in order:
        load(model, name, MADE[name]())
    act(model, control=0.8, plain=0.5)
    torch.testing.assert_close(output(model), expected(control=0.8, plain=0.5))


def test_fusing_and_unfusing_are_exact_in_a_wider_layer() -> None:
    model: Any = tiny_flux_transformer()
    load(model, "control", control())
    before, unfused = snapshot(model), output(model)
    change(model, "fuse")
    torch.testing.assert_close(output(model), unfused)
    change(model, "unfuse")
    check_same(model, before)
    assert torch.equal(output(model), unfused)


@pytest.mark.parametrize("fused", [False, True])
def test_when_it_goes_the_model_is_what_it_was(fused: bool) -> None:
    model: Any = tiny_flux_transformer()
    before, was = snapshot(model), output(model, IN)
    load(model, "control", control())
    if fused:
        change(model, "fuse")
    change(model, "remove", ["control"])
    check_same(model, before)
    assert torch.equal(output(model, IN), was)
    assert find_state(model) is None


@pytest.mark.parametrize("order", [("control", "plain"), ("plain", "control")])
def test_when_it_goes_a_regular_one_acts_as_before(order: tuple[str, ...]) -> None:
    model: Any = tiny_flux_transformer()
    for name in order:
        load(model, name, MADE[name]())
    change(model, "remove", ["control"])
    act(model, plain=0.5)
    assert (model.x_embedder.in_features, model.config.in_channels) == (IN, IN)
    torch.testing.assert_close(output(model, IN), expected(wide=False, plain=0.5))
    change(model, "remove", ["plain"])
    assert find_state(model) is None


def test_of_two_control_loras_the_last_one_to_go_makes_the_layer_narrow() -> None:
    model: Any = tiny_flux_transformer()
    before = snapshot(model)
    load(model, "one", control())
    load(model, "two", control())
    change(model, "remove", ["one"])
    assert model.config.in_channels == WIDE
    change(model, "remove", ["two"])
    check_same(model, before)


def test_a_layer_may_be_made_wider_twice_and_goes_back_to_what_it_was_at_first() -> None:
    model: Any = tiny_flux_transformer()
    before = snapshot(model)
    load(model, "one", control())
    load(model, "two", {"x_embedder": random_delta((OUT, WIDE + 8), 5)})
    assert model.config.in_channels == WIDE + 8
    change(model, "remove", ["two"])
    change(model, "remove", ["one"])
    check_same(model, before)


def test_swapped_for_a_regular_one_the_layer_is_narrow_again() -> None:
    model: Any = tiny_flux_transformer()
    load(model, "x", control())
    plan = bind(as_adapter(plain(), "transformer"), {"transformer": model})
    change(model, "add", "x", plan.deltas["transformer"], replace=True)
    assert model.config.in_channels == IN
    torch.testing.assert_close(output(model, IN), expected(wide=False, plain=1.0))


def fail_after_loading(model: Any, deltas: Mapping[str, Delta]) -> None:
    with Undo() as undo:
        get_state(model, undo).add("x", deltas, undo)
        assert model.config.in_channels == WIDE
        raise RuntimeError("later")


def test_a_load_that_fails_later_leaves_the_layer_alone() -> None:
    model: Any = tiny_flux_transformer()
    before = snapshot(model)
    plan = bind(as_adapter(control(), "transformer"), {"transformer": model})
    with pytest.raises(RuntimeError, match="later"):
        fail_after_loading(model, plan.deltas["transformer"])
    check_same(model, before)


def test_what_is_fused_keeps_a_layer_from_changing() -> None:
    model: Any = tiny_flux_transformer()
    load(model, "plain", plain())
    change(model, "fuse")
    before = snapshot(model)
    with pytest.raises(
        FuseError, match=r"`x_embedder` changes its number of inputs, and 'plain' is fused into it"
    ):
        load(model, "control", control())
    check_same(model, before)


def test_a_prepared_model_keeps_the_inputs_it_was_prepared_for() -> None:
    model: Any = tiny_flux_transformer()
    load(model, "plain", {INNER: random_delta((OUT, OUT), 4)})
    change(model, "prepare", 4)
    before = snapshot(model)
    with pytest.raises(StateError, match="the model is prepared for those it has"):
        load(model, "control", control())
    check_same(model, before)


def sequentially(model: nn.Module, folder: Path) -> None:
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def by_stream(model: nn.Module, folder: Path) -> None:
    offload(model, "leaf_level", stream=True)


def in_groups_on_disk(model: nn.Module, folder: Path) -> None:
    cpu, where = torch.device("cpu"), str(folder)
    apply_group_offloading(model, cpu, cpu, offload_type="leaf_level", offload_to_disk_path=where)


def in_float8(model: nn.Module, folder: Path) -> None:
    apply_layerwise_casting(model, torch.float8_e4m3fn, torch.float32, skip_modules_pattern=("norm",))


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (sequentially, "wider, which cannot be done here: `x_embedder` is offloaded"),
        (by_stream, r"`x_embedder` is offloaded.*before offloading is put on"),
        (in_groups_on_disk, "offloaded to disk in groups"),
        (in_float8, "wider, which cannot be done here: `x_embedder` keeps its weight as .*float8"),
    ],
)
def test_an_offloaded_or_quantized_model_keeps_its_inputs(
    place: Callable[[nn.Module, Path], None], says: str, tmp_path: Path
) -> None:
    model: Any = tiny_flux_transformer()
    plan = bind(as_adapter(control(), "transformer"), {"transformer": model})
    place(model, tmp_path)
    own = output(model, IN)
    with pytest.raises(StateError, match=says), Undo() as undo:
        get_state(model, undo).add("control", plan.deltas["transformer"], undo)
    assert find_state(model) is None
    assert (model.config.in_channels, model.x_embedder.in_features) == (IN, IN)
    assert torch.equal(output(model, IN), own)


def test_weights_that_stay_fused_for_good_keep_the_layer_wide() -> None:
    model: Any = tiny_flux_transformer()
    load(model, "control", control())
    change(model, "fuse")
    fused = output(model)
    change(model, "clear", keep_fused=True)
    assert (model.config.in_channels, find_state(model)) == (WIDE, None)
    assert torch.equal(output(model), fused)


def test_an_adapter_in_training_cannot_follow_and_is_named() -> None:
    model: Any = tiny_flux_transformer()
    with Undo() as undo:
        get_state(model, undo).add_trainable("mine", {"x_embedder": random_delta((OUT, IN))}, undo)
    before = snapshot(model)
    with pytest.raises(StateError, match=r"`x_embedder`: 'mine' cannot follow this layer"):
        load(model, "control", control())
    check_same(model, before)


def of_family(name: str, width: int) -> Delta:
    random = torch.Generator().manual_seed(7)
    return FAMILIES[name]((OUT, width), lambda *shape: torch.randn(shape, generator=random))


@pytest.mark.parametrize("family", [*FAMILIES, "bias alone"])
def test_every_family_follows_a_layer_that_is_made_wider_and_back(family: str) -> None:
    model: Any = tiny_flux_transformer()
    before = snapshot(model)
    delta = PartsDelta(None, FullDelta(torch.ones(OUT))) if family == "bias alone" else of_family(family, IN)
    load(model, "it", {"x_embedder": delta})
    was = output(model, IN)
    load(model, "control", control())
    act(model, it=1.0)
    torch.testing.assert_close(output(model), was)
    change(model, "fuse")
    torch.testing.assert_close(output(model), was)
    change(model, "unfuse")
    change(model, "remove", ["control"])
    assert torch.equal(output(model, IN), was)
    change(model, "remove", ["it"])
    check_same(model, before)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_makes_a_layer_wider_with_zeros_for_what_it_adds_to(family: str) -> None:
    delta, model = of_family(family, WIDE), tiny_flux_transformer()
    wide: Any = tiny_flux_transformer()
    weight = torch.cat([wide.x_embedder.weight.detach(), torch.zeros(OUT, WIDE - IN)], dim=1)
    bias = delta.part("bias")
    wide.x_embedder.in_features = WIDE
    wide.x_embedder.weight = nn.Parameter(weight + delta.weight(weight.double(), torch.float64).float())
    wide.x_embedder.bias.data += 0 if bias is None else bias.weight()
    load(model, "it", {"x_embedder": delta})
    torch.testing.assert_close(output(model), output(wide))
    change(model, "fuse")
    torch.testing.assert_close(output(model), output(wide))


@pytest.mark.parametrize(
    ("path", "shape"), [(INNER, (OUT, 2 * OUT)), ("x_embedder", (OUT + 1, WIDE)), ("proj_out", (16, 40))]
)
def test_only_a_first_layer_is_made_wider(path: str, shape: tuple[int, int]) -> None:
    with pytest.raises(ShapeMismatchError, match=f"`{path}`: the delta is"):
        load(tiny_flux_transformer(), "x", {path: random_delta(shape)})


def test_an_adapter_for_4_channels_leaves_the_others_of_an_inpainting_unet_alone() -> None:
    model: Any = tiny_unet(in_channels=9)
    before = model.conv_in.weight.detach().clone()
    delta = random_delta((8, 4, 3, 3))
    plan = bind(as_adapter({"conv_in": delta}), {"unet": model})
    assert isinstance(plan.deltas["unet"]["conv_in"], LoraDelta)
    with Undo() as undo:
        get_state(model, undo).add("x", plan.deltas["unet"], undo)
    act(model, x=1.0)
    with torch.no_grad():
        got = model(**unet_inputs(model)).sample
    change(model, "remove", ["x"])
    assert torch.equal(model.conv_in.weight, before)
    model.conv_in.weight.data[:, :4] += delta.weight()
    with torch.no_grad():
        torch.testing.assert_close(got, model(**unet_inputs(model)).sample)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_a_context_of_autocast_sees_a_layer_that_is_made_wider_and_narrower_inside_of_it() -> None:
    model = tiny_flux_transformer()
    with torch.autocast("cpu", torch.bfloat16):
        bare = output(model, IN)
        load(model, "control", control())
        assert torch.equal(output(model), output(copy.deepcopy(model))), "a copy has nothing cast yet"
        change(model, "clear")
        assert torch.equal(output(model, IN), bare)
