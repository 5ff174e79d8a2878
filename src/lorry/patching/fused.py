"""The fused weights of one model, and the originals that they are taken back to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, final

import torch
from torch import Tensor, nn

from lorry.algebra import Delta
from lorry.errors import FuseError
from lorry.patching.fusing import fused_parameter
from lorry.patching.layer_kinds import PARAMETERS, check_plain
from lorry.patching.undo import Undo

Originals = Literal["device", "cpu", "none"]
"""Where the original weights of fused targets are kept: beside the fused ones (unfuse swaps pointers), in main memory
(unfuse copies them back), or nowhere (half the memory, and unfuse refuses)."""

Contributions = Sequence[tuple[Delta, float]]


@final
class FusedWeights:
    """Which parameters of a model are fused, and what they were. Fields are replaced, never changed in place."""

    def __init__(self) -> None:
        self._originals: dict[str, Tensor | None] = {}
        """The saved tensor of each fused parameter; None where none was kept."""
        self._aside: dict[str, Tensor] | None = None
        """The fused tensors, while they are put aside."""

    def __bool__(self) -> bool:
        return bool(self._originals)

    def tensors(self) -> list[Tensor]:
        """Return what is held besides the model's own parameters."""
        return [
            tensor
            for tensor in (*self._originals.values(), *(self._aside or {}).values())
            if tensor is not None
        ]

    def original(self, name: str, parameter: Tensor) -> Tensor:
        """Return what a parameter was before it was fused: itself, where it is not.

        Raises:
            FuseError: it is fused, and no original was kept.
        """
        original = self._originals.get(name, parameter)
        if original is None:
            raise _no_originals(name)
        return original.to(parameter.device, parameter.dtype)

    def rewrite(
        self,
        modules: Mapping[str, nn.Module],
        contributions: Mapping[str, Contributions],
        undo: Undo,
        *,
        safe: bool = False,
        keep: Originals = "device",
    ) -> None:
        """Make modules' parameters what `contributions` make of their originals; without any, the originals.

        Args:
            modules: by path.
            contributions: by path.
            safe: refuse values that are not finite.
            keep: where originals go that are not saved yet.

        Raises:
            FuseError: a parameter cannot take a delta without loss, its original was not kept, or `safe` found a value
                that is not finite.
        """
        undo.set_attribute(self, "_originals", dict(self._originals))
        for name, parameter, deltas in self._touched(modules, contributions):
            original = self.original(name, parameter.data)
            if not deltas:
                undo.set_attribute(parameter, "data", original)
                del self._originals[name]
                continue
            new = fused_parameter(original, deltas)
            if safe and not bool(torch.isfinite(new).all()):
                raise FuseError(f"`{name}` would not be finite: nothing was fused.")
            self._originals.setdefault(name, _kept(original, keep))
            undo.set_attribute(parameter, "data", new)

    def _touched(
        self, modules: Mapping[str, nn.Module], contributions: Mapping[str, Contributions]
    ) -> Iterator[tuple[str, nn.Parameter, Contributions]]:
        for path, deltas in contributions.items():
            for key in PARAMETERS:
                name = f"{path}.{key}"
                parts = [(part, s) for delta, s in deltas if (part := delta.part(key)) is not None]
                if parts or name in self._originals:
                    yield name, check_plain(path, modules[path], key), parts

    def put_aside(self, modules: Mapping[str, nn.Module], undo: Undo) -> None:
        """Put the originals in place of the fused parameters.

        Raises:
            FuseError: an original was not kept.
        """
        self.check_kept()
        parameters = {name: _parameter(modules, name) for name in self._originals}
        undo.set_attribute(self, "_aside", {name: parameter.data for name, parameter in parameters.items()})
        for name, parameter in parameters.items():
            undo.set_attribute(parameter, "data", self.original(name, parameter.data))

    def bring_back(self, modules: Mapping[str, nn.Module], undo: Undo) -> None:
        """Put the fused parameters back that were put aside."""
        for name, tensor in (self._aside or {}).items():
            parameter = _parameter(modules, name)
            undo.set_attribute(parameter, "data", tensor.to(parameter.device, parameter.dtype))
        undo.set_attribute(self, "_aside", None)

    def let_go(self, undo: Undo) -> None:
        """Forget the originals: what is fused now stays for good."""
        undo.set_attribute(self, "_originals", {})

    def check_kept(self) -> None:
        """Raise when an original was not kept.

        Raises:
            FuseError: names the parameter.
        """
        for name, original in self._originals.items():
            if original is None:
                raise _no_originals(name)


def _parameter(modules: Mapping[str, nn.Module], name: str) -> nn.Parameter:
    path, _, key = name.rpartition(".")
    parameter = modules[path]._parameters[key]
    if parameter is None:
        raise FuseError(f"`{name}` was fused and is gone.")
    return parameter


def _kept(original: Tensor, keep: Originals) -> Tensor | None:
    if keep == "none":
        return None
    return original if keep == "device" else original.to("cpu", copy=original.device.type == "cpu")


def _no_originals(name: str) -> FuseError:
    return FuseError(
        f'`{name}` was fused with `originals="none"`: there are no saved bits to go back to. Load the base model '
        "again, or keep the fused weights for good with `unload_lora_weights(keep_fused=True)`."
    )
