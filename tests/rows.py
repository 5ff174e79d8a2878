"""Adapter files as each program spells them, made for tiny models of the real architectures, and what each must do.

A row is a file: names typed as its program writes them, and beside each the modules of diffusers' model that it must
change, in the order of its rows. What is expected is computed from the file's numbers and these names alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from lorry.binding import weight_shape
from models import (
    tiny_flux_pipeline,
    tiny_sd3_pipeline,
    tiny_sd_pipeline,
    tiny_sdxl_pipeline,
    tiny_wan_pipeline,
)
from pipelines import every

RANK, ALPHA = 2, 1.5
AB, KOHYA = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")
DOTS, PROCESSOR = ("lora.down.weight", "lora.up.weight"), ("down.weight", "up.weight")
LINEAR_LAYER = ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight")
DEFAULT, BARE = ("lora_A.default.weight", "lora_B.default.weight"), ("lora_A", "lora_B")
TINY: Mapping[str, Callable[[], Any]] = {
    "sd": tiny_sd_pipeline,
    "sdxl": tiny_sdxl_pipeline,
    "sd3": tiny_sd3_pipeline,
    "flux": tiny_flux_pipeline,
    "wan": tiny_wan_pipeline,
}
Changes = dict[str, dict[str, Tensor]]
"""By component and parameter, in float64."""


class Part(NamedTuple):
    """Layers that are spelled alike."""

    layers: Mapping[str, str]
    """{name in the file: `component/module`, or several with ` + ` between them; `~` exchanges the halves of a
    module's rows}."""
    pair: tuple[str, str] = AB
    alpha: bool = False
    magnitude: str = ""
    """The suffix of a DoRA's magnitude, of the rows."""
    bias: str = ""
    """The suffix of a bias; its part in the strength is the LoRA's when it is PEFT's."""
    rank: int = RANK


@final
@dataclass(frozen=True)
class Row:
    """A file of one program for one architecture."""

    pipe: str
    """A tiny pipeline of `models`, or a class of diffusers."""
    parts: Sequence[Part]
    dialect: str
    more: tuple[str, ...] = ()
    less: tuple[str, ...] = ()
    """Written dialects that can carry the file, and that cannot, other than those of most files."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    """PEFT's, of a folder."""
    scale: float = 1.0
    """What the metadata or the config makes of each layer's strength."""
    nested: bool = False
    """Whether the file is a pickle that has its tensors under `state_dict`."""

    def build(self) -> Any:
        """A pipeline of its own."""
        return TINY[self.pipe]() if self.pipe in TINY else every.build(self.pipe)

    def make(self, pipe: Any) -> tuple[dict[str, Tensor], Changes]:
        """Return the file's tensors, and what they change."""
        tensors: dict[str, Tensor] = {}
        changes: Changes = {}
        for number, part in enumerate(self.parts):
            random = torch.Generator().manual_seed(number)
            for stem, modules in part.layers.items():
                made, rows = _layer(pipe, part, modules.split(" + "), random, self.scale)
                tensors |= {f"{stem}.{suffix}": tensor for suffix, tensor in made.items()}
                for component, name, change in rows:
                    changes.setdefault(component, {})[name] = change
        return tensors, changes

    def write(self, tensors: Mapping[str, Tensor], folder: Path) -> Path:
        """Write the file, or PEFT's folder, and return where it is."""
        from lorry.files import write_safetensors

        if self.nested:
            path = folder / "in.ckpt"
            torch.save({"state_dict": dict(tensors), "global_step": 1}, path)
            return path
        if self.config is None:
            return write_safetensors(folder / "in.safetensors", tensors, self.metadata)
        (folder / "in").mkdir()
        (folder / "in" / "adapter_config.json").write_text(json.dumps(self.config), "utf-8")
        write_safetensors(folder / "in" / "adapter_model.safetensors", tensors, self.metadata)
        return folder / "in"


def _layer(
    pipe: Any, part: Part, modules: Sequence[str], random: torch.Generator, scale: float
) -> tuple[dict[str, Tensor], Iterator[tuple[str, str, Tensor]]]:
    """Return one layer's tensors by suffix, and what they change: component, parameter and sum in float64."""

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random) / 2

    found = [_module(pipe, name) for name in modules]
    shapes = [tuple[int, ...](weight_shape(module) or ()) for _, _, module in found]
    rows = sum(shape[0] for shape in shapes)
    down, up = noise(part.rank, *shapes[0][1:]), noise(rows, part.rank, *(1 for _ in shapes[0][2:]))
    made = {part.pair[0]: down, part.pair[1]: up}
    if part.alpha:
        made["alpha"] = torch.tensor(ALPHA)
        scale = scale * ALPHA / part.rank
    if part.bias:
        made[part.bias] = noise(rows)
    full = scale * (up.double().flatten(1) @ down.double().flatten(1)).unflatten(1, shapes[0][1:])
    if part.magnitude:
        made[part.magnitude] = magnitude = noise(rows, *(1 for _ in shapes[0][1:])).abs() + 1
        base = torch.cat([module.get_parameter("weight").detach().double() for _, _, module in found])
        whole = base + full
        norm = whole.flatten(1).norm(dim=1).reshape(magnitude.shape)
        full = whole * magnitude.double() / norm - base

    def changes() -> Iterator[tuple[str, str, Tensor]]:
        start = 0
        for name, (component, path, _), shape in zip(modules, found, shapes, strict=True):
            span = slice(start, start + shape[0])
            yield component, f"{path}.weight", _ordered(full[span], name)
            if part.bias:
                factor = scale if part.bias.startswith("lora") else 1.0
                yield component, f"{path}.bias", factor * _ordered(made[part.bias].double()[span], name)
            start += shape[0]

    return made, changes()


def _ordered(rows: Tensor, name: str) -> Tensor:
    return torch.cat(rows.chunk(2)[::-1]) if name.startswith("~") else rows


def _module(pipe: Any, name: str) -> tuple[str, str, nn.Module]:
    component, _, path = name.removeprefix("~").partition("/")
    model = getattr(pipe, component)
    try:
        return component, path, model.get_submodule(path)
    except AttributeError:
        return component, f"text_model.{path}", model.get_submodule(f"text_model.{path}")


def renamed(layers: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {prefix + stem: modules for stem, modules in layers.items()}


def flattened(layers: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {prefix + stem.replace(".", "_"): modules for stem, modules in layers.items()}


def own(component: str, *paths: str) -> dict[str, str]:
    """Modules under the names that they have in diffusers."""
    return {path: f"{component}/{path}" for path in paths}
