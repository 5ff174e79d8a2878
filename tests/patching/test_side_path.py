"""The side path's numbers, against the same model with the full delta in its weights, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lorry.binding import weight_shape
from lorry.patching import Strength
from models import random_delta, random_deltas, tiny_unet, unet_inputs
from small import PATHS, Small, changing, check_near, put, small_input, total, with_deltas


class Special(nn.Linear):
    """A class of somebody else's."""


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(9, 7),
    "linear without bias": lambda: nn.Linear(9, 7, bias=False),
    "subclass of linear": lambda: Special(9, 7),
    "conv 1x1": lambda: nn.Conv2d(4, 6, 1),
    "conv 3x3": lambda: nn.Conv2d(4, 6, 3),
    "conv 3x1": lambda: nn.Conv2d(4, 6, (3, 1), padding=(1, 0)),
    "conv without bias": lambda: nn.Conv2d(4, 6, 3, bias=False),
    "stride": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "uneven stride and padding": lambda: nn.Conv2d(4, 6, 3, stride=(1, 2), padding=(2, 0)),
    "same": lambda: nn.Conv2d(4, 6, 3, padding="same"),
    "dilation": lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=2),
    "groups": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "reflect": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", stride=2),
    "conv1d": lambda: nn.Conv1d(4, 6, 3, padding=1, stride=2),
    "conv1d in groups": lambda: nn.Conv1d(4, 6, 3, groups=2, bias=False),
    "conv3d": lambda: nn.Conv3d(4, 6, (1, 2, 2), stride=(1, 2, 2)),
    "conv3d, replicate, groups": lambda: nn.Conv3d(4, 6, 3, padding=1, padding_mode="replicate", groups=2),
    "all together": lambda: nn.Conv2d(
        *(4, 6, 3), padding=2, padding_mode="replicate", stride=2, dilation=2, groups=2, bias=False
    ),
}
STRENGTHS = (1.0, -0.6, 0.0, 1.7)
RANKS = (3, 1, 5, 2)


def layer_input(layer: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    sizes = {nn.Conv1d: (2, 4, 8), nn.Conv2d: (2, 4, 8, 7), nn.Conv3d: (2, 4, 3, 6, 5)}
    shape = next((size for kind, size in sizes.items() if isinstance(layer, kind)), (2, 3, 9))
    return torch.randn(shape).to(dtype)


def loaded(layer: nn.Module, count: int, **kwargs: Any) -> tuple[nn.Sequential, nn.Module]:
    """A model of one layer with `count` adapters, and the same with the deltas in its weight, in float64."""
    model = nn.Sequential(layer)
    base = copy.deepcopy(model)
    shape = weight_shape(layer) or ()
    added = {}
    for number in range(count):
        deltas = {"0": random_delta(shape, number, RANKS[number], alpha=2.0, **kwargs)}
        put(model, f"adapter{number}", STRENGTHS[number], deltas=deltas)
        added[str(number)] = (deltas, Strength(STRENGTHS[number]))
    return model, with_deltas(base, total(added))


@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "grad"])
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_and_its_adapters_are_the_layer_with_their_sum(name: str, count: int, grad: bool) -> None:
    model, exact = loaded(LAYERS[name](), count)
    x = layer_input(model[0])
    with torch.set_grad_enabled(grad):
        check_near(model(x), exact(x.double()), 1e-6)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_tucker_core_works_beside_a_plain_pair(kernel: int) -> None:
    layer = nn.Conv2d(4, 6, kernel, padding=kernel // 2)
    model, base = nn.Sequential(layer), nn.Sequential(copy.deepcopy(layer))
    tucker = put(model, "tucker", deltas={"0": random_delta((6, 4, kernel, kernel), tucker=True, alpha=2.0)})
    plain = put(model, "plain", 0.5, deltas={"0": random_delta((6, 4, kernel, kernel), 1)})
    added = total({"tucker": (tucker, Strength()), "plain": (plain, Strength(0.5))})
    x = layer_input(layer)
    check_near(model(x), with_deltas(base, added)(x.double()), 1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(9),
        lambda: torch.randn(0, 9),
        lambda: torch.randn(2, 0, 9),
        lambda: torch.randn(1, 9).expand(5, 9),
        lambda: torch.randn(3, 9, 5).transpose(1, 2),
        lambda: torch.randn(9, 5, 3).permute(2, 1, 0),
        lambda: torch.randn(2, 9, 4, 5).permute(0, 2, 3, 1),
        lambda: torch.randn(4, 3, 2, 9).transpose(0, 2),
        lambda: torch.randn(5, 7, 18)[..., ::2],
    ],
    ids=[
        "vector",
        "empty",
        "empty in the middle",
        "expanded",
        "transposed",
        "reversed",
        "channels last",
        "4d",
        "sliced",
    ],
)
@pytest.mark.parametrize("name", ["linear", "linear without bias"])
def test_linear_layers_take_inputs_of_every_shape_and_stride(name: str, make: Callable[[], Tensor]) -> None:
    model, exact = loaded(LAYERS[name](), 2)
    x = make()
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            out, expected = model(x), exact(x.double())
        assert out.shape == expected.shape
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)


def test_convolutions_take_inputs_in_channels_last_and_without_a_batch() -> None:
    model, exact = loaded(nn.Conv2d(4, 6, 3, padding=1), 2)
    x = torch.randn(2, 4, 8, 7)
    with torch.no_grad():
        check_near(model(x.to(memory_format=torch.channels_last)), exact(x.double()), 1e-6)
        check_near(model(x[0]), exact(x[0].double()), 1e-6)
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        check_near(model(x.to(memory_format=torch.channels_last)), exact(x.double()), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["linear", "conv 3x3", "groups"])
def test_in_half_precision_the_error_is_that_of_four_roundings(name: str, dtype: torch.dtype) -> None:
    # The base's output, the hidden states, these scaled, and the sum are each rounded to the dtype once (half an eps
    # of the largest number each); the weights and factors are exact in the dtype to begin with.
    model, exact = loaded(LAYERS[name]().to(dtype), 2, dtype=dtype)
    x = layer_input(model[0], dtype)
    with torch.no_grad():
        out = model(x)
    assert out.dtype == dtype
    check_near(out, exact(x.double()), 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("file", [torch.float16, torch.bfloat16, torch.float64])
def test_a_file_of_another_dtype_works_in_the_layers_dtype(file: torch.dtype) -> None:
    model, exact = loaded(nn.Linear(9, 7), 2, dtype=file)
    x = layer_input(model[0])
    assert model(x).dtype == torch.float32
    check_near(model(x), exact(x.double()), 1e-6)


@pytest.mark.parametrize("name", ["linear", "conv 3x3"])
@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "grad"])
def test_autocast_gives_the_dtype_and_the_accuracy_of_autocast(name: str, grad: bool) -> None:
    plain = LAYERS[name]()
    model, exact = loaded(copy.deepcopy(plain), 2)
    x = layer_input(plain)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
        out = model(x)
        assert out.dtype == plain(x).dtype == torch.bfloat16
    check_near(out, exact(x.double()), 3 * torch.finfo(torch.bfloat16).eps)


def test_strengths_differ_by_path_and_a_call_scales_them_all() -> None:
    model, base = Small(), Small()
    by_path = Strength(0.5, {"conv": 2.0, "out": 0.0})
    first = put(model, "first", by_path)
    second = put(model, "second", -1.0, seed=1, ends=("to_q", "out"))
    x = small_input()
    for scale in (1.0, 0.25, -1.0):
        added = total({"first": (first, by_path.times(scale)), "second": (second, Strength(-scale))})
        out = model(x) if scale == 1.0 else model(x, cross_attention_kwargs={"scale": scale})
        check_near(out, with_deltas(base, added)(x.double()), 2e-6)


# --- nothing is corrupted -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "grad"])
@pytest.mark.parametrize("name", ["linear", "conv 3x3", "groups"])
def test_a_forward_leaves_its_input_the_weights_and_earlier_outputs_alone(name: str, grad: bool) -> None:
    model, _ = loaded(LAYERS[name](), 2)
    x = layer_input(model[0])
    kept = {
        key: tensor.detach().clone() for key, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    input_before = x.clone()
    with torch.set_grad_enabled(grad):
        first = model(x)
        first_before = first.detach().clone()
        second = model(x)
    assert torch.equal(x, input_before)
    assert torch.equal(first, first_before)
    assert torch.equal(second, first)
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert torch.equal(tensor, kept[key]), key


@pytest.mark.parametrize("frozen", [False, True], ids=["base trained", "base frozen"])
def test_gradients_through_loaded_adapters_are_those_of_the_fused_parameters(frozen: bool) -> None:
    model = Small().double()
    deltas = put(model, dtype=torch.float64)
    exact = with_deltas(Small(), total({"toy": (deltas, Strength())}))
    for one in (model, exact):
        one.requires_grad_(not frozen)
    x, y = (small_input(dtype=torch.float64).requires_grad_() for _ in range(2))
    model(x).square().sum().backward()
    exact(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-12, atol=1e-13)
    if not frozen:
        grads = {key: parameter.grad for key, parameter in exact.named_parameters()}
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, grads[key], rtol=1e-12, atol=1e-13)


def test_an_output_kept_for_the_backward_pass_is_not_written_over() -> None:
    # tanh keeps its output, and the layer after it adds in place where it may.
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4)).double()
    put(model, dtype=torch.float64)
    model.requires_grad_(False)
    assert torch.autograd.gradcheck(model, (torch.randn(2, 4, dtype=torch.float64, requires_grad=True),))


class TanhLinear(nn.Linear):
    """A layer that keeps its output for the backward pass."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return torch.tanh(super().forward(input))


class TanhConv(nn.Conv2d):
    """A convolution that keeps its output for the backward pass."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return torch.tanh(super().forward(input))


class ColumnsFirst(nn.Linear):
    """A layer whose output is not contiguous."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input).mT.contiguous().mT


@pytest.mark.parametrize("layer", [TanhLinear(4, 5), TanhConv(4, 5, 3)], ids=["linear", "convolution"])
def test_a_subclass_that_keeps_its_output_has_right_gradients(layer: nn.Module) -> None:
    model = nn.Sequential(layer).double()
    put(model, dtype=torch.float64)
    shape = (2, 4) if isinstance(layer, nn.Linear) else (1, 4, 4, 4)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (x,))


def test_a_subclass_whose_output_is_not_contiguous_gets_its_side_output() -> None:
    model, exact = loaded(ColumnsFirst(9, 7), 2)
    x = torch.randn(2, 3, 9)
    with torch.no_grad():
        check_near(model(x), exact(x.double()), 1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    model = Small().double()
    put(model, dtype=torch.float64)
    x, y = (small_input(dtype=torch.float64).requires_grad_() for _ in range(2))
    model(x).square().sum().backward()
    out = checkpoint(model, y, use_reentrant=reentrant)
    assert isinstance(out, Tensor)
    out.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-12, atol=1e-14)


# --- dtype and device changes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scales_stay_float32_when_the_model_is_cast(dtype: torch.dtype) -> None:
    model = Small()
    put(model, strength=0.7)
    before = {path: model.get_submodule(path).get_buffer("lorry_scale").clone() for path in PATHS}
    model.to(dtype)
    for path in PATHS:
        module = model.get_submodule(path)
        assert module.get_buffer("lorry_down").dtype == module.get_buffer("lorry_up").dtype == dtype
        assert module.get_buffer("lorry_scale").dtype == torch.float32
        assert torch.equal(module.get_buffer("lorry_scale"), before[path])
    assert model(small_input(dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("default", [torch.float16, torch.float64])
def test_scales_are_float32_whatever_the_default_dtype(default: torch.dtype) -> None:
    model = Small()
    torch.set_default_dtype(default)
    try:
        put(model, strength=0.7)
    finally:
        torch.set_default_dtype(torch.float32)
    assert model.conv.get_buffer("lorry_scale").dtype == torch.float32


def test_a_cast_and_a_change_of_adapters_after_it_work_together() -> None:
    model = Small()
    first = put(model, "first", 0.7)
    model.to(torch.float64)
    second = put(model, "second", -0.5, seed=1)
    added = total({"first": (first, Strength(0.7)), "second": (second, Strength(-0.5))})
    x = small_input(dtype=torch.float64)
    check_near(model(x), with_deltas(Small(), added)(x), 1e-7)


def test_an_adapter_made_active_again_after_a_cast_is_in_the_new_dtype() -> None:
    model = Small()
    put(model)
    for dtype in (torch.float16, torch.float64, torch.float32):
        model.to(dtype)
        for chosen in ({}, {"toy": Strength()}):
            with changing(model) as (state, undo):
                state.set_active(chosen, undo)
        assert model.conv.get_buffer("lorry_down").dtype == dtype
        assert model.conv.get_buffer("lorry_up").dtype == dtype


def test_after_a_cast_there_and_back_the_files_own_bits_are_used_again() -> None:
    model = Small()
    deltas = put(model)
    model.half().float()
    with changing(model) as (state, undo):
        state.set_active({}, undo)
    with changing(model) as (state, undo):
        state.set_active({"toy": Strength()}, undo)
    assert torch.equal(model.conv.get_buffer("lorry_down"), deltas["conv"].tensors()["down"])


# --- what is kept and what is not ---------------------------------------------------------------------------------


def test_adapters_never_show_in_a_state_dict_and_one_loads_back_strictly() -> None:
    model, plain = tiny_unet(), tiny_unet()
    keys = list(plain.state_dict())
    put(model)
    assert list(model.state_dict()) == keys
    model.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(model.state_dict(), strict=True)
    assert list(dict(model.named_parameters())) == list(dict(plain.named_parameters()))


def test_a_loaded_adapter_shares_nothing_with_the_tensors_it_came_from() -> None:
    model = Small()
    deltas = random_deltas(model)
    source = deltas["conv"].tensors()["down"].requires_grad_()
    put(model, deltas=deltas)
    buffer = model.conv.get_buffer("lorry_down")
    assert not buffer.requires_grad
    before = buffer.clone()
    with torch.no_grad():
        source.zero_()
    assert torch.equal(buffer, before)


def test_names_classes_and_reprs_of_modules_are_as_before() -> None:
    model, plain = tiny_unet(), tiny_unet()
    classes = {path: type(module) for path, module in plain.named_modules()}
    put(model)
    for path, module in model.named_modules():
        assert isinstance(module, classes[path]), path
        assert type(module).__qualname__ == classes[path].__qualname__
        assert type(module).__module__ == classes[path].__module__
    assert repr(model) == repr(plain)


@pytest.mark.parametrize("name", LAYERS)
def test_a_new_layer_of_a_patched_layers_class_is_a_plain_one(name: str) -> None:
    plain = LAYERS[name]()
    model, _ = loaded(LAYERS[name](), 1)
    cls: Any = type(model[0])
    made = cls(4, 6) if isinstance(plain, nn.Linear) else cls(4, 6, 3)
    assert type(made) is type(plain)


def test_an_adapter_with_no_targets_in_a_block_leaves_its_modules_alone() -> None:
    model = Small()
    put(model, ends=("to_q",))
    assert type(model.conv) is nn.Conv2d
    assert type(model.out) is nn.Linear
    assert type(model.block["to_q"]) is not nn.Linear


def test_a_unet_with_adapters_on_every_layer_is_the_unet_with_their_sum() -> None:
    model, base = tiny_unet(), tiny_unet()
    first, second = (
        put(model, "first", 0.8, size=0.2),
        put(model, "second", -0.4, seed=1, size=0.2, alpha=1.0),
    )
    exact = with_deltas(base, total({"first": (first, Strength(0.8)), "second": (second, Strength(-0.4))}))
    inputs = unet_inputs(model)
    doubled = {k: v.double() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    with torch.no_grad():
        check_near(model(**inputs).sample, exact(**doubled).sample, 1e-5)
        assert float((model(**inputs).sample - base(**inputs).sample).abs().max()) > 0.01
