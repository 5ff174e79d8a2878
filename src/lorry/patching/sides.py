"""The side paths of one model: which modules are patched, and what stands in each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast, final

import torch
from torch import Tensor, nn

from lorry.algebra import Delta, LowRank
from lorry.errors import StateError
from lorry.patching.classes import change_class, forget_tensors
from lorry.patching.fused import FusedWeights
from lorry.patching.fusing import fused_parameter
from lorry.patching.layer_kinds import PARAMETERS, plain_parameter
from lorry.patching.placement import module_device, module_dtype
from lorry.patching.resident import Resident
from lorry.patching.side_path import BUFFERS, DOWN, SCALE, UP, SidePath, side_path_class, trained_names
from lorry.patching.strength import Strength
from lorry.patching.undo import Undo


@final
@dataclass(frozen=True, slots=True)
class Acting:
    """An adapter that acts through the side path, and how strongly."""

    resident: Resident
    strength: Strength


@final
@dataclass(frozen=True, slots=True)
class _Seat:
    """What stands in one module's side path."""

    names: tuple[str, ...]
    joined: tuple[str, ...]
    """Those of `names` whose factors are joined, in their order."""
    scales: tuple[float, ...]
    """For each of `joined`, the factor that its file puts on its delta here."""
    ranks: tuple[int, ...]
    copied: bool
    """Whether one of `names` acts through a copy of the weight or the bias."""


@final
class SidePaths:
    """Patches and fills the modules of one model. Fields are replaced, never changed in place."""

    def __init__(self) -> None:
        self.modules: dict[str, SidePath] = {}
        self._seats: dict[str, _Seat] = {}
        self._copied_at: dict[str, tuple[float, ...]] = {}
        """The strengths that each module's copies were made with."""

    def settle(self, model: nn.Module, residents: Iterable[Resident], undo: Undo) -> None:
        """Patch the modules that some adapter has a delta for, and unpatch all others."""
        wanted = dict.fromkeys(path for resident in residents for path in resident.deltas)
        modules = {path: module for path, module in self.modules.items() if path in wanted}
        for path, module in self.modules.items():
            if path not in wanted:
                _unpatch(module, undo)
        named = dict(model.named_modules()) if wanted.keys() - modules.keys() else {}
        for path in wanted:
            if path not in modules:
                modules[path] = _patched(path, named[path], undo)
        undo.set_attribute(self, "modules", modules)

    def forget(self, name: str, undo: Undo) -> None:
        """Fill the modules anew, at the next refresh, in which an adapter of this name stands: its tensors change."""
        kept = {path: seat for path, seat in self._seats.items() if name not in seat.names}
        undo.set_attribute(self, "_seats", kept)

    def forget_copies(self, undo: Undo) -> None:
        """Make all copies anew at the next refresh: what they were made from changes."""
        undo.set_attribute(self, "_copied_at", {})

    def tensors(self) -> list[Tensor]:
        """Return what stands in all modules."""
        return [tensor for found in self.buffers().values() for tensor in found if tensor is not None]

    def buffers(self) -> dict[str, tuple[Tensor | None, ...]]:
        """Return what stands in each module: the tensors of its `BUFFERS`."""
        return {path: tuple([m._buffers[name] for name in BUFFERS]) for path, m in self.modules.items()}

    def put_back(
        self, before: Mapping[str, tuple[Tensor | None, ...]], after: Mapping[str, tuple[Tensor | None, ...]]
    ) -> bool:
        """Put `before` back in place of `after`, unless something else than `after` stands there by now.

        Returns:
            Whether it was put back. Pointers only: it cannot fail half way.
        """
        now = self.buffers()
        same = now.keys() == after.keys() and all(
            one is other for path, found in now.items() for one, other in zip(found, after[path], strict=True)
        )
        if same:
            for path, tensors in before.items():
                self.modules[path]._buffers.update(zip(BUFFERS, tensors, strict=True))
        return same

    @torch.inference_mode(False)
    @torch.no_grad()
    def refresh(self, acting: Mapping[str, Acting], weights: FusedWeights, undo: Undo) -> None:
        """Bring every module's side path to what `acting` says: joined factors, their strengths, and copies.

        What mode the caller computes in (inference, autocast) makes no difference to what is made here.
        """
        with ExitStack() as stack:
            for device in ("cpu", "cuda"):
                stack.enter_context(torch.autocast(device, enabled=False))
            self._refresh(acting, weights, undo)

    def _refresh(self, acting: Mapping[str, Acting], weights: FusedWeights, undo: Undo) -> None:
        seats: dict[str, _Seat] = {}
        filled: set[str] = set()
        for path, module in self.modules.items():
            names = tuple([name for name, one in acting.items() if path in one.resident.deltas])
            if module.lorry_trained or any(acting[name].resident.trainable for name in names):
                names = self._place_trained(path, module, names, acting, undo)
            seat = self._seats.get(path)
            if names and (seat is None or seat.names != names):
                seat = _fill(path, module, names, acting, undo)
                filled.add(path)
            if names and seat is not None:
                seats[path] = seat
            else:
                _empty(module, undo)
        undo.set_attribute(self, "_seats", seats)
        self._write_scales(acting, undo)
        self._write_copies(acting, weights, filled, undo)

    def _place_trained(
        self, path: str, module: SidePath, names: Sequence[str], acting: Mapping[str, Acting], undo: Undo
    ) -> tuple[str, ...]:
        """Give a module the parameters of the trainable adapters among `names`; return the others."""
        trained = tuple(name for name in names if acting[name].resident.trainable)
        for name in set(module.lorry_trained) - set(trained):
            _drop_trained(module, name, undo)
        for name in trained:
            delta = acting[name].resident.deltas[path]
            pair = delta.low_rank()
            if pair is None:
                raise StateError(f"`{path}`: {delta.family} cannot be trained yet.")
            strength = pair.scale * acting[name].strength.at(path)
            down, up, scale = trained_names(name)
            undo.set_item(module._parameters, down, pair.down)
            undo.set_item(module._parameters, up, pair.up)
            vector = torch.full((pair.rank,), strength, dtype=torch.float32, device=pair.down.device)
            undo.set_item(module._buffers, scale, vector)
        undo.set_item(vars(module), "lorry_trained", trained)
        return tuple(name for name in names if name not in trained)

    def _write_scales(self, acting: Mapping[str, Acting], undo: Undo) -> None:
        """Give each module its piece of one vector of strengths: one copy to a device, whatever their number."""
        joined = {path: seat for path, seat in self._seats.items() if seat.joined}
        if not joined:
            return
        scales = [
            acting[name].strength.at(path) * scale
            for path, seat in joined.items()
            for name, scale in zip(seat.joined, seat.scales, strict=True)
        ]
        ranks = [rank for seat in joined.values() for rank in seat.ranks]
        vector = torch.tensor(scales, dtype=torch.float32).repeat_interleave(torch.tensor(ranks))
        sizes = [sum(seat.ranks) for seat in joined.values()]
        pieces: dict[torch.device, tuple[Tensor, ...]] = {}
        for number, path in enumerate(joined):
            buffers = self.modules[path]._buffers
            device = cast(Tensor, buffers[DOWN]).device
            if device not in pieces:
                pieces[device] = vector.to(device).split(sizes)
            undo.set_item(buffers, SCALE, pieces[device][number])

    def _write_copies(
        self, acting: Mapping[str, Acting], weights: FusedWeights, filled: set[str], undo: Undo
    ) -> None:
        """Give the modules that need them their copies, but those that have them at these strengths."""
        copied_at = {}
        for path, seat in self._seats.items():
            if not seat.copied:
                continue
            strengths = tuple(acting[name].strength.at(path) for name in seat.names)
            copied_at[path] = strengths
            if path not in filled and self._copied_at.get(path) == strengths:
                continue
            deltas = {
                name: (acting[name].resident.deltas[path], s)
                for name, s in zip(seat.names, strengths, strict=True)
            }
            for key in PARAMETERS:
                parts = [
                    (part, strength)
                    for name, (delta, strength) in deltas.items()
                    if not (key == "weight" and name in seat.joined) and (part := delta.part(key)) is not None
                ]
                copy = _copy(path, self.modules[path], key, parts, weights) if parts else None
                undo.set_item(self.modules[path]._buffers, f"lorry_{key}", copy)
        undo.set_attribute(self, "_copied_at", copied_at)


def _fill(
    path: str, module: SidePath, names: tuple[str, ...], acting: Mapping[str, Acting], undo: Undo
) -> _Seat:
    """Put the joined factors of `names` into a module."""
    factors = {name: acting[name].resident.factors(path, module) for name in names}
    pairs = {name: pair for name, pair in factors.items() if pair is not None}
    down, up = _join(list(pairs.values())) if pairs else (None, None)
    _empty(module, undo)
    undo.set_item(module._buffers, DOWN, down)
    undo.set_item(module._buffers, UP, up)
    deltas = {name: acting[name].resident.deltas[path] for name in names}
    copied = any(name not in pairs or delta.part("bias") is not None for name, delta in deltas.items())
    scales, ranks = tuple([p.scale for p in pairs.values()]), tuple([p.rank for p in pairs.values()])
    return _Seat(names, tuple(pairs), scales, ranks, copied)


def _empty(module: SidePath, undo: Undo) -> None:
    for buffer in BUFFERS:
        if module._buffers[buffer] is not None:
            undo.set_item(module._buffers, buffer, None)


def _copy(
    path: str, module: SidePath, key: str, parts: Sequence[tuple[Delta, float]], weights: FusedWeights
) -> Tensor:
    """Make a parameter as it is with deltas added, for families that have no cheaper side path."""
    dtype = module_dtype(module)
    if key == "bias" and module._parameters.get("bias") is None:
        return fused_parameter(
            torch.zeros(parts[0][0].shape, dtype=dtype, device=module_device(module)), parts
        )
    plain = plain_parameter(path, module, key)
    return fused_parameter(plain.to(dtype), parts, weights.original(f"{path}.{key}", plain))


def _join(pairs: Sequence[LowRank]) -> tuple[Tensor, Tensor]:
    if len(pairs) == 1:
        return pairs[0].down, pairs[0].up
    return torch.cat([pair.down for pair in pairs]), torch.cat([pair.up for pair in pairs], dim=1)


def _patched(path: str, module: nn.Module, undo: Undo) -> SidePath:
    if isinstance(module, SidePath):
        raise StateError(
            f"`{path}` carries adapters already, which were loaded on a model that this one is a part of."
        )
    if not change_class(module, side_path_class(type(module)), undo):
        raise StateError(
            f"`{path}`: another program has replaced this layer's forward (trainers' networks do), so that an adapter "
            "would do nothing here. Take that program's network off first."
        )
    non_persistent = module._non_persistent_buffers_set
    undo.set_attribute(module, "_non_persistent_buffers_set", non_persistent | set(BUFFERS))
    for buffer in BUFFERS:
        undo.set_item(module._buffers, buffer, None)
    return cast(SidePath, module)


def _drop_trained(module: SidePath, name: str, undo: Undo) -> None:
    for key in trained_names(name):
        undo.delete_item(module._parameters if key in module._parameters else module._buffers, key)


def _unpatch(module: SidePath, undo: Undo) -> None:
    for buffer in BUFFERS:
        undo.delete_item(module._buffers, buffer)
    non_persistent = module._non_persistent_buffers_set
    undo.set_attribute(module, "_non_persistent_buffers_set", non_persistent - set(BUFFERS))
    for name in vars(module).get("lorry_trained", ()):
        _drop_trained(module, name, undo)
    if "lorry_trained" in vars(module):
        undo.delete_item(vars(module), "lorry_trained")
    forget_tensors(module, BUFFERS, undo)
    change_class(module, module.lorry_class, undo)
