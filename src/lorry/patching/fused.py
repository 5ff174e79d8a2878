"""The fused weights of one model, and the originals that they are taken back to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from lorry.algebra import Delta
from lorry.errors import FuseError
from lorry.patching.following import bring
from lorry.patching.fusing import fused_parameter
from lorry.patching.layer_kinds import PARAMETERS, check_plain
from lorry.patching.memory import is_held_once
from lorry.patching.originals import Keeper, Originals, Saved
from lorry.patching.undo import Undo

Contributions = Sequence[tuple[Delta, float]]


@final
class FusedWeights:
    """Which parameters of a model are fused, and what they were. Fields are replaced, never changed in place."""

    def __init__(self) -> None:
        self._originals: dict[str, Saved] = {}
        """Of each fused parameter."""
        self._aside: dict[str, Tensor] | None = None
        """The fused tensors, while they are put aside."""
        self._spare: dict[str, Tensor] = {}
        """Memory of parameters that were fused, for the next time: new memory costs as much as the sums do."""

    def __bool__(self) -> bool:
        return bool(self._originals)

    def tensors(self) -> list[Tensor]:
        """Return what is held besides the model's own parameters."""
        originals = [saved.tensor for saved in self._originals.values() if saved.tensor is not None]
        return [*originals, *(self._aside or {}).values(), *self._spare.values()]

    def original(self, name: str, parameter: Tensor) -> Tensor:
        """Return what a parameter was before it was fused: itself, where it is not.

        Raises:
            FuseError: it is fused, and no original was kept.
        """
        if name not in self._originals:
            return parameter
        original = self._originals[name].found(parameter.device, parameter.dtype)
        if original is None:
            raise _no_originals(name)
        return original

    def follow(self, path: str, before: torch.device, now: torch.device) -> None:
        """Move what is kept beside a module's parameters from the device they were on to where they are."""
        for key in PARAMETERS:
            name = f"{path}.{key}"
            saved = self._originals.get(name)
            beside = saved.tensor if saved is not None and saved.beside else None
            self._spare.pop(name, None)
            for tensor in (beside, (self._aside or {}).get(name)):
                if tensor is not None and tensor.device == before:
                    bring(tensor, now)

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
        undo.set_attribute(self, "_spare", dict(self._spare))
        with Keeper(keep) as keeper:
            for path, deltas in contributions.items():
                for key in PARAMETERS:
                    name = f"{path}.{key}"
                    parts = [
                        (one, strength) for delta, strength in deltas if (one := delta.part(key)) is not None
                    ]
                    if parts:
                        self._fuse(name, check_plain(path, modules[path], key), parts, safe, keeper, undo)
                    elif name in self._originals:
                        self._restore(name, _parameter(modules, name), undo)

    def _fuse(
        self, name: str, parameter: nn.Parameter, parts: Contributions, safe: bool, keeper: Keeper, undo: Undo
    ) -> None:
        original = self.original(name, parameter.data)
        spare = self._spare.pop(name, None)
        new = fused_parameter(original, parts, out=_reusable(spare, original))
        if safe and not bool(torch.isfinite(new).all()):
            raise FuseError(f"`{name}` would not be finite: nothing was fused.")
        if name not in self._originals:
            self._originals[name] = keeper.keep(original)
        undo.set_attribute(parameter, "data", new)

    def _restore(self, name: str, parameter: nn.Parameter, undo: Undo) -> None:
        """Put a parameter's original back, which swaps pointers where that is on the device."""
        fused, original = parameter.data, self.original(name, parameter)
        if original is self._originals[name].tensor:
            self._spare[name] = fused
        undo.set_attribute(parameter, "data", original)
        del self._originals[name]

    def free_spare(self, undo: Undo) -> None:
        """Let the memory go that is kept for the next time."""
        undo.set_attribute(self, "_spare", {})

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
        for name, saved in self._originals.items():
            if saved.tensor is None:
                raise _no_originals(name)


def _parameter(modules: Mapping[str, nn.Module], name: str) -> nn.Parameter:
    path, _, key = name.rpartition(".")
    parameter = modules[path]._parameters[key]
    if parameter is None:
        raise FuseError(f"`{name}` was fused and is gone.")
    return parameter


def _reusable(spare: Tensor | None, like: Tensor) -> Tensor | None:
    """Return memory for a tensor like another, where there is such and nobody else has it."""
    if spare is None or spare.shape != like.shape or spare.stride() != like.stride():
        return None
    fits = spare.dtype is like.dtype and spare.device == like.device
    return spare if fits and is_held_once(spare) else None


def _no_originals(name: str) -> FuseError:
    return FuseError(
        f'`{name}` was fused with `originals="none"`: there are no saved bits to go back to. Load the base model '
        "again, or keep the fused weights for good with `unload_lora_weights(keep_fused=True)`."
    )
