"""A model small enough to be driven through thousands of steps, and its outputs worked out from scratch in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lorry.algebra import Delta
from lorry.patching import AdapterState, Strength, Undo, find_state, get_state
from models import random_deltas


class Small(nn.Module):
    """Convolutions (one grouped) and linear layers (one without bias) in a tree; takes a strength for a call."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 6, 3, padding=1)
            self.block = nn.ModuleDict(
                {"grouped": nn.Conv2d(6, 4, 3, stride=2, groups=2), "to_q": nn.Linear(16, 5)}
            )
            self.out = nn.Linear(5, 7, bias=False)

    def forward(self, x: Tensor, cross_attention_kwargs: dict[str, Any] | None = None) -> Tensor:
        assert not cross_attention_kwargs, cross_attention_kwargs
        hidden = self.block["grouped"](torch.tanh(self.conv(x))).flatten(1)
        return self.out(torch.tanh(self.block["to_q"](hidden)))


PATHS = ("conv", "block.grouped", "block.to_q", "out")


def state_of(model: nn.Module) -> AdapterState:
    """The adapters' state of a model that has one."""
    state = find_state(model)
    assert state is not None
    return state


def small_input(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)


def with_deltas(base: nn.Module, added: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `base` in float64, with full deltas added to the weights of these paths."""
    exact = copy.deepcopy(base).double()
    with torch.no_grad():
        for path, delta in added.items():
            exact.get_submodule(path).get_parameter("weight").add_(delta)
    return exact


def total(adapters: Mapping[str, tuple[Mapping[str, Delta], Strength]]) -> dict[str, Tensor]:
    """The sum of adapters' full deltas, each at its strength, by path and in float64."""
    added: dict[str, Tensor] = {}
    for deltas, strength in adapters.values():
        for path, delta in deltas.items():
            full = strength.at(path) * delta.weight(dtype=torch.float64)
            added[path] = added[path] + full if path in added else full
    return added


def check_near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raise where the largest difference is over `tolerance` times the largest number."""
    assert got.shape == expected.shape, (got.shape, expected.shape)
    assert bool(torch.isfinite(got).all())
    error = float(
        (got.detach().double() - expected.detach().double()).abs().max() / expected.detach().abs().max()
    )
    assert error <= tolerance, f"relative error {error:.2e}, allowed {tolerance:.0e}"


@contextmanager
def changing(model: nn.Module) -> Iterator[tuple[AdapterState, Undo]]:
    """The state of a model (made where there is none) and an `Undo` for what is done to it."""
    with Undo() as undo:
        yield get_state(model, undo), undo


def put(
    model: nn.Module, name: str = "toy", strength: Strength | float = 1.0, **kwargs: Any
) -> Mapping[str, Delta]:
    """Load random deltas on a model and make them active beside what is; `kwargs` go to `random_deltas`."""
    deltas = cast("Mapping[str, Delta]", kwargs.pop("deltas", None)) or random_deltas(model, **kwargs)
    with changing(model) as (state, undo):
        state.add(name, deltas, undo)
        chosen = strength if isinstance(strength, Strength) else Strength(strength)
        state.set_active({**{n: state.strengths[n] for n in state.active}, name: chosen}, undo)
    return deltas
