"""A plain account of what was done to a pipeline, and of what its layers must then compute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorry.algebra import Delta
from lorry.binding import BareParameter, carriers
from pipelines.of_every_family import TARGETS, Path2Delta

KEYS = ("weight", "bias")


Step = tuple[int, int]
"""A denoising step, counted from 1, and how many there are."""


@final
@dataclass(frozen=True, slots=True)
class Strong:
    """A strength: a number, a factor on the layers that have a segment in their path, and one that moves by step."""

    value: float = 1.0
    segment: str = ""
    factor: float = 1.0
    ends: tuple[float, float] | None = None
    """The factors of the first step and the last, between which it goes in a straight line."""
    by_block: bool = False
    """It was written as a dict of blocks, which lorry holds for another strength than the same written by part."""

    def at(self, path: str) -> float:
        return self.value * (self.factor if self.segment in path.split(".") else 1.0)

    def times(self, scale: float) -> Strong:
        return replace(self, value=self.value * scale)

    def in_step(self, step: Step | None) -> Strong:
        if step is None or self.ends is None:
            return self
        (first, last), (number, count) = self.ends, step
        return self.times(first + (last - first) * (number - 1) / max(1, count - 1))

    def on(self, component: str, paths: Iterable[str]) -> Strong:
        """The same on a component that has these modules."""
        ends = None if component.startswith("text") else self.ends
        met = any(self.segment in path.split(".") for path in paths)
        if not met or not self.segment or self.factor == 1.0:
            return Strong(self.value, ends=ends)
        return replace(self, factor=self.factor if self.value else 0.0, ends=ends)


@final
@dataclass(slots=True)
class Component:
    """What one model carries."""

    loaded: dict[str, Path2Delta] = field(default_factory=dict)
    strengths: dict[str, Strong] = field(default_factory=dict)
    active: list[str] = field(default_factory=list)
    fused: dict[str, Strong] = field(default_factory=dict)
    kept: dict[tuple[str, str], bool] = field(default_factory=dict)
    """Of each fused parameter (path and key), whether its original was kept."""
    enabled: bool = True
    prepared: bool = False

    def exists(self) -> bool:
        return bool(self.loaded) or self.prepared

    @property
    def no_way_back(self) -> bool:
        """Whether an adapter is fused without its original."""
        return not all(self.kept.values())

    def put(self, name: str, deltas: Path2Delta) -> None:
        self.loaded[name] = deltas
        self.strengths.setdefault(name, Strong())

    def may_choose(self, chosen: Mapping[str, Strong]) -> bool:
        return all(n not in self.fused or self.strengths[n] == s for n, s in chosen.items())

    def choose(self, chosen: Mapping[str, Strong]) -> None:
        here = {name: strength for name, strength in chosen.items() if name in self.loaded}
        self.active = list(here)
        self.strengths |= here

    def new(self, names: Iterable[str]) -> list[str]:
        """Which of these are here and not fused."""
        return [name for name in names if name in self.loaded and name not in self.fused]

    def parameters(self, names: Iterable[str]) -> set[tuple[str, str]]:
        """The parameters that these adapters change."""
        return {
            (path, key)
            for name in names
            for path, delta in self.loaded[name].items()
            for key in KEYS
            if delta.part(key) is not None
        }

    def fuse(self, names: Iterable[str], scale: float, *, keep: bool) -> None:
        new = self.new(names)
        self.fused |= {name: self.strengths[name].times(scale) for name in new}
        for parameter in self.parameters(new):
            self.kept.setdefault(parameter, keep)

    def unfuse(self, names: Iterable[str]) -> None:
        for name in names:
            self.fused.pop(name, None)
        still = self.parameters(self.fused)
        self.kept = {parameter: kept for parameter, kept in self.kept.items() if parameter in still}

    def remove(self, names: Iterable[str]) -> None:
        names = list(names)
        self.unfuse(names)
        for name in names:
            self.loaded.pop(name, None)
            self.strengths.pop(name, None)
        self.active = [name for name in self.active if name in self.loaded]
        self.enabled = self.enabled or not self.exists()

    def acting(self, scale: float = 1.0, step: Step | None = None) -> dict[str, Strong]:
        """Who changes what is computed, and how strongly."""
        if not self.enabled:
            return {}
        beside = {
            name: self.strengths[name].in_step(step).times(scale)
            for name in self.active
            if name not in self.fused
        }
        return self.fused | beside

    def fused_paths(self) -> set[str]:
        """Where the parameters themselves are changed."""
        return {path for name in self.fused for path in self.loaded[name]} if self.enabled else set()


@final
class Dense:
    """What layers compute by the sum of all deltas, worked out from scratch in float64."""

    def __init__(self, kind: str, pipeline: Any) -> None:
        """Take down what the layers are without adapters."""
        self._paths = TARGETS[kind]
        self.base: dict[tuple[str, str, str], Tensor] = {}
        self._deltas: dict[tuple[Delta, float], Tensor] = {}
        self.take_down(pipeline)

    def take_down(self, pipeline: Any) -> None:
        """Take what the layers are now for their base."""
        self._deltas = {}
        for component, paths in self._paths.items():
            for path in paths:
                layer = carriers(getattr(pipeline, component))[path]
                for key in KEYS:
                    if (parameter := layer._parameters.get(key)) is not None:
                        self.base[component, path, key] = parameter.detach().clone()

    def parameter(
        self, component: str, path: str, key: str, who: Component, scale: float, step: Step | None
    ) -> Tensor | None:
        """What a parameter is in effect, in float64."""
        base = self.base.get((component, path, key))
        total = None if base is None else base.double()
        for name, strength in who.acting(scale, step).items():
            part = None
            if path in who.loaded[name]:
                part = who.loaded[name][path].part(key)
            if part is not None:
                start = torch.zeros(part.shape, dtype=torch.float64) if total is None else total
                total = start + self._full(part, base, strength.at(path))
        return total

    def _full(self, delta: Delta, base: Tensor | None, strength: float) -> Tensor:
        if (delta, strength) not in self._deltas:
            wide = delta.with_tensors({name: tensor.double() for name, tensor in delta.tensors().items()})
            start = None if base is None else base.double()
            self._deltas[delta, strength] = wide.weight(start, torch.float64, strength)
        return self._deltas[delta, strength]

    @torch.no_grad()
    def check(
        self,
        pipeline: Any,
        component: str,
        who: Component,
        tolerance: float,
        scale: float = 1.0,
        step: Step | None = None,
    ) -> None:
        """Raise where a layer of a component does not compute what it must, for a fixed input."""
        for path in self._paths.get(component, ()):
            layer = carriers(getattr(pipeline, component))[path]
            weight, bias = (self.parameter(component, path, key, who, scale, step) for key in KEYS)
            if weight is None:
                raise AssertionError(f"`{component}.{path}` has no weight")
            if isinstance(layer, BareParameter):
                self._check_bare(pipeline, component, path, weight, tolerance)
                continue
            x = _input(layer, weight).to(cast(Tensor, layer.weight).dtype)
            got, expected = layer(x).double(), _output(layer, x.double(), weight, bias)
            own = _output(
                layer, x.double(), *(_double(self.base.get((component, path, key))) for key in KEYS)
            )
            error = float((got - expected).abs().max()) / float(
                torch.stack([own, expected - own]).abs().max()
            )
            assert error <= tolerance, f"`{component}.{path}` is off by {error:.1e}, allowed {tolerance:.0e}"

    def _check_bare(
        self, pipeline: Any, component: str, path: str, expected: Tensor, tolerance: float
    ) -> None:
        """Raise where a block does not read what it must in place of its own parameter."""
        owner, _, name = path.rpartition(".")
        got = getattr(getattr(pipeline, component).get_submodule(owner), name).double()
        base = self.base[component, path, "weight"].double()
        error = float((got - expected).abs().max() / torch.stack([base, expected - base]).abs().max())
        assert error <= tolerance, f"`{component}.{path}` is off by {error:.1e}, allowed {tolerance:.0e}"


def _double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


def _input(layer: nn.Module, weight: Tensor) -> Tensor:
    random = torch.Generator().manual_seed(0)
    if isinstance(layer, nn.Conv2d | nn.GroupNorm):
        return torch.randn(1, weight.shape[weight.ndim > 1], 4, 4, generator=random)
    return torch.randn(3, weight.shape[-1], generator=random)


def _output(layer: nn.Module, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return functional.conv2d(x, weight, bias, layer.stride, layer.padding)  # pyright: ignore[reportCallIssue, reportArgumentType]
    if isinstance(layer, nn.GroupNorm):
        return functional.group_norm(x, layer.num_groups, weight, bias, layer.eps)
    if isinstance(layer, nn.LayerNorm):
        return functional.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
    assert weight is not None
    return functional.linear(x, weight, bias)
