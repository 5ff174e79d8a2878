"""A loaded adapter on one model: its exact deltas, and the factors that the side path computes with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import final

import torch
from torch import nn

from lorry.algebra import Delta, LowRank
from lorry.errors import StateError
from lorry.patching.following import bring
from lorry.patching.memory import held_bytes
from lorry.patching.placement import module_device, own_copy


@final
@dataclass(eq=False, slots=True)
class Resident:
    """One adapter's tensors on one model.

    `deltas` keep the bits of the file. The side path computes in the module's dtype: where that is the file's too, its
    factors are the same memory; else the cast ones are kept beside (made once, at the first use).
    """

    deltas: Mapping[str, Delta]
    """By the path of the module."""
    parked: torch.device | None = None
    """Where `set_lora_device` has put it; None for an adapter that follows its modules."""
    trainable: bool = False
    """Its tensors are parameters: they are used as they are and never joined with others."""
    bare: Mapping[str, Delta] = field(default_factory=dict)
    """By the name of a parameter that is no layer's. They are small, and stay in main memory, each as it is."""
    _factors: dict[str, LowRank | None] = field(default_factory=dict)
    _firsts: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, deltas: Mapping[str, Delta], modules: Mapping[str, nn.Module], *, owned: bool = False
    ) -> Resident:
        """Bring `deltas` to where their modules compute: copies, or (`owned`) their own memory where it is there.

        Those whose path is no module's are for bare parameters.
        """
        bare = {path: delta for path, delta in deltas.items() if path not in modules}
        bare = own_copy(bare, dict.fromkeys(bare, torch.device("cpu")))
        layers = {path: delta for path, delta in deltas.items() if path not in bare}
        devices = {path: module_device(modules[path]) for path in layers}
        tensors = [tensor for delta in layers.values() for tensor in delta.tensors().values()]
        wanted = {*devices.values()}
        if not owned or len(wanted) > 1 or {*map(attrgetter("device"), tensors)} != wanted:
            return cls(own_copy(layers, devices), bare=bare)
        is_each_once = len({*map(id, tensors)}) == len(tensors)
        kept = layers if is_each_once else {path: apart(delta) for path, delta in layers.items()}
        return cls(kept, bare=bare)

    @property
    def everywhere(self) -> dict[str, Delta]:
        """All its deltas, of layers and of bare parameters."""
        return {**self.deltas, **self.bare}

    @property
    def firsts(self) -> list[str]:
        """The path of the first layer of each name: of `to_q`, of `to_k`, and so on."""
        if not self._firsts:
            first: dict[str, str] = {}
            for path in self.deltas:
                first.setdefault(path.rpartition(".")[2], path)
            self._firsts += first.values()
        return self._firsts

    def only(self, path: str) -> Resident:
        """Return the part of it that is for one module, over the same tensors."""
        return Resident({path: self.deltas[path]}, self.parked, self.trainable)

    def factors(self, path: str, device: torch.device, dtype: torch.dtype) -> LowRank | None:
        """Return the factors for a module that computes on `device` in `dtype`; None where the family has none."""
        cached = self._factors.get(path)
        if cached is None:
            if path in self._factors:
                return None
        elif cached.down.device == device and cached.down.dtype == dtype:
            return cached
        pair = self.deltas[path].low_rank()
        if pair is not None and not (
            pair.down.device == device and pair.down.dtype == pair.up.dtype == dtype
        ):
            pair = LowRank(pair.down.to(device, dtype), pair.up.to(device, dtype), pair.scale)
        if pair is None or self.parked is None or self.parked == device:
            self._factors[path] = pair
        return pair

    def moved(self, device: torch.device, modules: Mapping[str, nn.Module]) -> Resident:
        """Return the same adapter parked on `device`; memory elsewhere is freed when this one is dropped.

        One that was parked elsewhere, and comes back to where all its modules are, is parked no longer.

        Raises:
            StateError: it is in training.
        """
        if self.trainable:
            raise StateError(
                "An adapter in training cannot be parked: it would lose its optimiser's parameters."
            )
        deltas = own_copy(self.deltas, dict.fromkeys(self.deltas, device))
        found = (tensor.device for delta in deltas.values() for tensor in delta.tensors().values())
        device = next(found, device)
        away = self.parked not in (None, device)
        comes_back = away and all(module_device(modules[path]) == device for path in deltas)
        return Resident(deltas, parked=None if comes_back else device, bare=self.bare)

    def follow(self, path: str, device: torch.device) -> None:
        """Move what is for one module to `device`, unless the adapter is parked. Nothing is kept where it was."""
        if self.parked is None and path in self.deltas:
            for tensor in self.deltas[path].tensors().values():
                bring(tensor, device)
            self._factors.pop(path, None)

    @property
    def nbytes(self) -> int:
        """The bytes it holds, cast factors included."""
        return held_bytes(self.tensors())

    def tensors(self) -> list[torch.Tensor]:
        """Return its tensors, cast factors included."""
        exact = [tensor for delta in self.everywhere.values() for tensor in delta.tensors().values()]
        return exact + [tensor for pair in self._factors.values() if pair for tensor in (pair.down, pair.up)]


def apart(delta: Delta) -> Delta:
    """Return a delta over the same memory by tensors of its own: those of another module or model may move away."""
    return delta.with_tensors({name: tensor.detach() for name, tensor in delta.tensors().items()})
