"""Layers that an adapter makes wider: it takes more input channels than the base has, whose weights are zeros there.

Flux's control LoRAs give `x_embedder` twice its inputs. The layer is wider while such an adapter is loaded, active or
not, so that the pipeline can pass it what it takes; when the last one goes, the layer is what it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from lorry.algebra import Delta
from lorry.binding import INPUTS
from lorry.errors import FuseError, StateError
from lorry.patching.group_copies import check_not_on_disk, groups_by_stream
from lorry.patching.layer_kinds import check_plain
from lorry.patching.modes import changing_weights
from lorry.patching.placement import module_device
from lorry.patching.undo import Undo

_CONFIG = "_internal_dict"
"""Where a model of diffusers keeps its configuration."""


@final
@dataclass(frozen=True, slots=True)
class _Before:
    """What a layer was."""

    inputs: int
    config: Any
    """The model's configuration, where it changed with the layer; else None."""


@final
class Widened:
    """The layers of one model that are wider than the base's. Fields are replaced, never changed in place."""

    def __init__(self) -> None:
        self._before: dict[str, _Before] = {}

    def any(self) -> bool:
        """Whether a layer is wider than it was."""
        return bool(self._before)

    @staticmethod
    def wanted(modules: Mapping[str, nn.Module], deltas: Mapping[str, Delta]) -> dict[str, tuple[int, int]]:
        """Return the shape (out, in) that the weight of each layer must have that deltas are too wide for.

        A plan has such for first layers alone.
        """
        return {
            path: (shape[0], shape[1])
            for path in INPUTS
            if path in deltas
            and isinstance(layer := modules[path], nn.Linear)
            and len(shape := deltas[path].shape) == 2
            and shape[1] > layer.in_features
        }

    def widen(self, model: nn.Module, path: str, inputs: int, undo: Undo) -> None:
        """Give a layer zeros for more inputs.

        Raises:
            StateError: its weight is offloaded, quantized or sharded.
        """
        check_not_on_disk(model)
        layer = model.get_submodule(path)
        try:
            weight = check_plain(path, layer, "weight")
        except FuseError as error:
            raise StateError(
                f"This adapter makes a layer wider, which cannot be done here: {error}"
            ) from error
        if weight.device != module_device(layer) or groups_by_stream(model):
            raise StateError(
                f"`{path}` is offloaded, and this adapter makes it wider. Load the adapter before offloading is put on."
            )
        before = self._before.get(path) or _Before(weight.shape[1], _config_that_says(model, weight.shape[1]))
        with changing_weights():
            wide = weight.new_zeros(weight.shape[0], inputs)
            wide[:, : weight.shape[1]] = weight
        _set(layer, weight, wide, undo)
        if before.config is not None:
            config = type(before.config)({**before.config, "in_channels": inputs})
            undo.set_attribute(model, _CONFIG, config)
        undo.set_attribute(self, "_before", {**self._before, path: before})

    def to_narrow(self, deltas: Mapping[str, list[Delta]]) -> dict[str, int]:
        """Return the inputs that widened layers had, for those that none of the deltas left there needs wide."""
        return {
            path: before.inputs
            for path, before in self._before.items()
            if all(delta.narrowed(before.inputs) is not None for delta in deltas.get(path, ()))
        }

    def narrow(self, model: nn.Module, path: str, undo: Undo) -> None:
        """Make a layer what it was, but where what is in its weight for good uses the new inputs."""
        layer, before = model.get_submodule(path), self._before[path]
        weight = check_plain(path, layer, "weight")
        undo.set_attribute(self, "_before", {p: b for p, b in self._before.items() if p != path})
        if bool(weight.data[:, before.inputs :].any()):
            return
        with changing_weights():
            own = weight.data[:, : before.inputs].clone()
        _set(layer, weight, own, undo)
        if before.config is not None:
            undo.set_attribute(model, _CONFIG, before.config)


def _set(layer: nn.Module, weight: nn.Parameter, data: Tensor, undo: Undo) -> None:
    undo.set_attribute(weight, "data", data)
    undo.set_item(vars(layer), "in_features", data.shape[1])


def _config_that_says(model: nn.Module, inputs: int) -> Any:
    """Return a model's configuration where it has this number for its input channels, else None."""
    config = vars(model).get(_CONFIG)
    return config if isinstance(config, Mapping) and config.get("in_channels") == inputs else None
