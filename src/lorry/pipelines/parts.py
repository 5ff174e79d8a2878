"""Strengths by part of the model and by step, as a value that users write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import final

from torch import nn

from lorry.binding import carriers
from lorry.binding.kinds import kind_of
from lorry.binding.patterns import covers
from lorry.errors import StateError, did_you_mean
from lorry.names import TEXT_ENCODERS, Target
from lorry.patching import Strength, is_strength
from lorry.pipelines.schedules import Points, Schedule


@final
@dataclass(frozen=True, slots=True)
class Strengths:
    """How strongly an adapter acts where and when: what `set_adapters` takes in place of a number.

    At a module and in a step the strength is `scale` times the factor of the last entry of `parts` that covers the
    module (1 where none does) times what `steps` says of the step.
    """

    scale: float = 1.0
    parts: Mapping[str, float] = field(default_factory=dict)
    """{pattern: factor}. A pattern is a component (`unet`, `denoiser`, `text_encoder`, `text_encoders`), a kind of
    layer (`attention`, `feed-forward`, `convolution`, …), or segments of a module's path in a row, where `*` stands for
    any characters: `down_blocks.1`, `attn2`, `to_q`."""
    steps: Schedule | Sequence[tuple[float, float]] | None = None
    """A function (step, number of steps) -> factor, steps counted from 1; or (position, factor) points, between which
    the factor goes in a straight line, positions from 0 (first step) to 1 (last), or steps where one is above 1. It is
    for denoisers: text encoders run before the first step, at `scale` times their part."""

    def __post_init__(self) -> None:
        for where, value in {"the strength": self.scale, **self.parts}.items():
            if isinstance(value, bool) or not isinstance(value, Real) or not is_strength(value):
                raise StateError(f"{where}: expected a finite number, got {value!r}.")
        if self.steps is not None and not callable(self.steps):
            object.__setattr__(self, "steps", Points.of(self.steps))

    def on(self, component: str, model: nn.Module) -> Strength:
        """Return the strength that this means on one component."""
        steps = None if component in TEXT_ENCODERS or not callable(self.steps) else self.steps
        by_path = {}
        for target in targets_of(component, model) if self.parts else ():
            factor = self._factor(target)
            if factor != 1.0:
                by_path[target.path] = self.scale * factor
        return Strength(float(self.scale), by_path or None, steps)

    def _factor(self, target: Target) -> float:
        found = [factor for pattern, factor in self.parts.items() if covers(pattern, target)]
        return found[-1] if found else 1.0


def targets_of(component: str, model: nn.Module) -> Iterator[Target]:
    """Yield the modules of a model that have no modules in them, and its bare parameters: what adapters change."""
    for path, module in carriers(model).items():
        if not module._modules:
            yield Target(component, path)


def check_parts(weights: Iterable[object], models: Mapping[str, nn.Module | None]) -> None:
    """Raise where a pattern covers no module of any component.

    Raises:
        StateError: names the pattern, and the likeliest meant.
    """
    patterns = [pattern for weight in weights if isinstance(weight, Strengths) for pattern in weight.parts]
    if not patterns:
        return
    targets = [t for name, model in models.items() if model is not None for t in targets_of(name, model)]
    for pattern in patterns:
        if not any(covers(pattern, target) for target in targets):
            words = {word for target in targets for word in (*target.path.split("."), kind_of(target))}
            raise StateError(
                f"No module of this pipeline is covered by {pattern!r}.{did_you_mean(pattern, {*words, *models})} "
                "A pattern is a component, a kind of layer, or whole segments of a module's path."
            )
