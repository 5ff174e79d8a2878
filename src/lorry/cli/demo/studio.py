"""Draw rows of pictures that differ in nothing but the adapters, and time what is done between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from lorry.cli.drawing import quiet


@final
@dataclass(frozen=True, eq=False, slots=True)
class Pictures:
    """What one call of the pipeline drew."""

    latents: Tensor
    """(pictures, channels, height, width), as the last denoising step left them."""
    pixels: Tensor
    """(pictures, 3, height, width), from 0 to 1."""

    def same_bits(self, other: Pictures) -> bool:
        """Return whether latents and pixels are equal, bit for bit."""
        return torch.equal(self.latents, other.latents) and torch.equal(self.pixels, other.pixels)

    def changed(self, other: Pictures) -> int:
        """Return how many pictures differ from those of `other`."""
        return sum(not torch.equal(one, two) for one, two in zip(self.pixels, other.pixels, strict=True))

    def distance(self, other: Pictures) -> float:
        """Return the largest difference of a pixel, on the scale from 0 to 1."""
        return float((self.pixels - other.pixels).abs().max())


@final
@dataclass(frozen=True, slots=True)
class Stopwatch:
    """The seconds that each kind of thing took, for every time that it was done."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def time(self, what: str, count: int = 1) -> Iterator[None]:
        """Add the time spent inside the context, in which `what` is done `count` times."""
        start = time.perf_counter()
        yield
        each = (time.perf_counter() - start) / count
        self.seconds.setdefault(what, []).extend([each] * count)


@final
@dataclass(frozen=True, eq=False, slots=True)
class Studio:
    """A pipeline, and all that stays the same between the rows."""

    pipeline: Any
    steps: int
    guidance: float
    watch: Stopwatch = field(default_factory=Stopwatch)
    on_step: Callable[[], None] = lambda: None

    def draw(self, prompts: Sequence[str], adapters: str) -> Pictures:
        """Draw one picture of each prompt in one call. A column's noise is the same in every row.

        Args:
            prompts: what to draw.
            adapters: what acts, for the table of timings.
        """
        last: list[Tensor] = []

        def keep(_pipeline: Any, _step: int, _timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
            last[:] = [state["latents"].clone()]
            self.on_step()
            return state

        noise = [torch.Generator("cpu").manual_seed(number) for number in range(len(prompts))]
        with quiet(), self.watch.time(f"draw a picture, {adapters}", len(prompts)):
            pixels = self.pipeline(
                list(prompts),
                generator=noise,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                output_type="pt",
                callback_on_step_end=keep,
            ).images
        return Pictures(last[0], pixels)


@final
@dataclass(frozen=True, eq=False, slots=True)
class Snapshot:
    """Copies of a pipeline's models, down to their classes and hooks."""

    tensors: dict[str, Tensor]
    modules: dict[str, tuple[type, int]]
    """{module path: (class, number of hooks)}."""

    @classmethod
    def of(cls, pipeline: Any) -> Snapshot:
        """Copy every parameter and buffer of the pipeline's models."""
        models = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
        tensors: dict[str, Tensor] = {}
        modules: dict[str, tuple[type, int]] = {}
        for name, model in models.items():
            held = [*model.named_parameters(), *model.named_buffers(remove_duplicate=False)]
            tensors |= {f"{name}.{path}": tensor.detach().clone() for path, tensor in held}
            modules |= {f"{name}.{path}": (type(m), _hooks(m)) for path, m in model.named_modules()}
        return cls(tensors, modules)

    def same_bits(self, other: Snapshot) -> bool:
        """Return whether everything is equal: names, classes, hooks, and each tensor bit for bit."""
        return (
            self.modules == other.modules
            and self.tensors.keys() == other.tensors.keys()
            and all(torch.equal(tensor, other.tensors[name]) for name, tensor in self.tensors.items())
        )


def _hooks(module: nn.Module) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks)
