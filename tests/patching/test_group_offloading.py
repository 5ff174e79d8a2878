"""diffusers' group offloading around patched modules, on a machine without an accelerator.

The CPU stands for the accelerator too. A tensor that is moved from the CPU to the CPU keeps its memory, which one that
is moved to a GPU does not; so here every move gives new memory. Streams are simulated: what diffusers does to the
tensors is done, by its own code, but on no second stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from diffusers.hooks import group_offloading
from torch import Tensor, nn

from lorry.algebra import FullDelta
from lorry.binding import bare_parameters
from lorry.patching import Strength, group_copies
from models import T5_WIDTH, random_deltas, tiny_unet, tiny_wan_transformer, unet_inputs
from small import changing, put

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def a_machine_with_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    def transfer(self: Any, tensor: Tensor, source: Tensor, default_stream: Any) -> None:
        tensor.data = source.clone()

    @contextmanager
    def pinned(self: Any) -> Iterator[Any]:
        yield dict(self.cpu_param_dict)

    groups = group_offloading.ModuleGroup
    monkeypatch.setattr(groups, "_transfer_tensor_to_device", transfer)
    monkeypatch.setattr(groups, "_pinned_memory_tensors", pinned)
    monkeypatch.setattr(groups, "_to_cpu", staticmethod(lambda tensor, low: tensor.data.clone()))
    monkeypatch.setattr(group_offloading, "TorchDeviceBackend", Backend)


class Stream:
    def synchronize(self) -> None:
        """Nothing runs beside."""


class Backend:
    """What `torch.cuda` is to diffusers, without a GPU."""

    def __init__(self, device: Any = None) -> None:
        self.device = device

    def stream(self, stream: Stream) -> Any:
        return nullcontext()

    def current_stream(self) -> Stream:
        return Stream()


def offload(model: nn.Module, kind: str, stream: bool) -> None:
    """What `apply_group_offloading` does after it has made sure that there is a GPU."""
    config = group_offloading.GroupOffloadingConfig(
        onload_device=CPU,
        offload_device=CPU,
        offload_type=group_offloading.GroupOffloadingType(kind),
        num_blocks_per_group=1,
        non_blocking=False,
        stream=Stream() if stream else None,  # pyright: ignore[reportArgumentType]
        record_stream=False,
        low_cpu_mem_usage=True,
    )
    group_offloading._apply_group_offloading(model, config)


def drawn(model: Any) -> Tensor:
    inputs = unet_inputs(model)
    with torch.no_grad():
        first, second = (
            model(**inputs).sample,
            model(**inputs).sample,
        )  # by stream, the first call finds the order
    assert torch.equal(first, second)
    return second


def set_strength(model: nn.Module, value: float) -> None:
    with changing(model) as (state, undo):
        state.set_active({"a": Strength(value)}, undo)


@pytest.mark.parametrize("stream", [False, True], ids=["", "by stream"])
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("first", ["hook", "patch"])
def test_whatever_is_changed_between_calls_is_drawn(first: str, kind: str, stream: bool) -> None:
    model, plain = tiny_unet(), tiny_unet()
    bare = drawn(plain)
    if first == "hook":
        offload(model, kind, stream)
        assert torch.equal(drawn(model), bare)
    put(model, "a", 0.5)
    put(plain, "a", 0.5)
    if first == "patch":
        offload(model, kind, stream)
        for one in (model, plain):
            set_strength(one, 0.75)
    assert torch.equal(drawn(model), drawn(plain))
    for one in (model, plain):
        set_strength(one, -1.0)
    assert torch.equal(drawn(model), drawn(plain))
    half = [one(**unet_inputs(one), cross_attention_kwargs={"scale": 0.5}).sample for one in (model, plain)]
    assert torch.equal(*half)
    assert torch.equal(drawn(model), drawn(plain))
    for one in (model, plain):
        put(one, "b", 0.25, seed=1)
    assert torch.equal(drawn(model), drawn(plain))
    with changing(model) as (state, undo):
        state.clear(undo)
    assert torch.equal(drawn(model), bare)
    check_no_copies_left(model)


@pytest.mark.parametrize("stream", [False, True], ids=["", "by stream"])
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("first", ["hook", "patch"])
def test_so_is_what_is_changed_of_parameters_of_blocks(first: str, kind: str, stream: bool) -> None:
    model, plain = tiny_wan_transformer(), tiny_wan_transformer()
    bare = drawn_by_wan(plain)
    if first == "hook":
        offload(model, kind, stream)
        assert torch.equal(drawn_by_wan(model), bare)
    deltas = {
        name: FullDelta(torch.randn(stand_in.weight.shape, generator=torch.Generator().manual_seed(number)))
        for number, (name, stand_in) in enumerate(bare_parameters(plain).items())
    }
    assert len(deltas) == 3
    for one in (model, plain):
        with changing(one) as (state, undo):
            state.add("a", {**deltas, **random_deltas(one, ends=("attn1.to_q",))}, undo)
        set_strength(one, 0.5)
    if first == "patch":
        offload(model, kind, stream)
    for value in (0.75, -1.0):
        for one in (model, plain):
            set_strength(one, value)
        assert torch.equal(drawn_by_wan(model), drawn_by_wan(plain))
    assert float((drawn_by_wan(model) - bare).abs().max()) > 0.1
    half = [drawn_by_wan(one, attention_kwargs={"scale": 0.5}) for one in (model, plain)]
    assert torch.equal(*half)
    assert torch.equal(drawn_by_wan(model), drawn_by_wan(plain))
    with changing(model) as (state, undo):
        state.clear(undo)
    assert torch.equal(drawn_by_wan(model), bare)
    check_no_copies_left(model)


def drawn_by_wan(model: Any, **kwargs: Any) -> Tensor:
    random = torch.Generator().manual_seed(0)
    inputs = {"hidden_states": torch.randn(1, 4, 1, 4, 4, generator=random), "timestep": torch.tensor([3])}
    inputs["encoder_hidden_states"] = torch.randn(1, 5, T5_WIDTH, generator=random)
    with torch.no_grad():
        first, second = (model(**inputs, **kwargs).sample for _ in range(2))
    assert torch.equal(first, second)
    return second


def check_no_copies_left(model: nn.Module) -> None:
    """Raise where offloading still holds memory of adapters that are gone."""
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for group in group_copies.groups_by_stream(model):
        assert all(id(tensor) in own for tensor in group.cpu_param_dict)
