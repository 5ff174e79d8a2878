"""A scene: what stands in the side paths of a model while some adapters act, whatever their strengths.

A scene is made once for a set of adapters and kept, so that going back to it moves pointers only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import is_, itemgetter
from typing import Any, final

import torch
from torch import Tensor

from lorry.algebra import LowRank
from lorry.patching.memory import Block, padded
from lorry.patching.modes import without_modes
from lorry.patching.places import Places
from lorry.patching.resident import Resident
from lorry.patching.side_by_side import run_side_by_side
from lorry.patching.side_path import DOWN, SCALE, UP, LinearSidePath, SidePath
from lorry.patching.slots import Slots, empty_slots
from lorry.patching.strengths import StrengthVector

Pairs = Mapping[str, LowRank]
"""Factors by adapter."""
Columns = Mapping[str, Sequence[Tensor | None]]
"""The contents of many modules' buffers, by the buffers' name."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class Scene:
    """What a set of adapters puts into the modules of a model.

    The scenes of a prepared model have their tensors, its slots, in common, as long as its modules stay where they are.
    """

    buffers: Mapping[str, dict[str, Any]]
    """Of each module where one of them has factors, by its path."""
    columns: Columns
    """What goes into these, in their order, by the buffer's name."""
    copied: Mapping[str, tuple[str, ...]]
    """Who acts, by the path of each module where one of them acts through a copy of the weight or the bias."""
    joined: Mapping[str, Pairs]
    """The factors that stand joined, by module."""
    strengths: StrengthVector
    places: Places
    """Of all modules where one of them acts."""
    room: int | None
    """The rank of the slots that its factors are written into; None where its own tensors stand in the modules."""
    names_known: Sequence[set[str]] = ()
    """Of an idle scene: the buffers' names that nn.Module knows, by module."""

    @property
    def acting(self) -> Mapping[str, dict[str, Any]]:
        """The buffers of the modules where somebody acts, by path."""
        return {} if self.is_idle else self.buffers

    @property
    def is_idle(self) -> bool:
        """Whether it is that of nobody, in the modules of another (`left_by_all`)."""
        return bool(self.names_known)

    @property
    def is_held(self) -> bool:
        """Whether the modules hold what it puts into them, and there are some to tell it by.

        What a module holds goes elsewhere together, so that the strengths are looked at. Factors alone are cast, by
        lorry (`SidePaths.recast`), which lets the scene go. Of an idle scene, that has none, the modules are asked
        whether they compute in what they did: they may have been given other weights meanwhile.
        """
        held = self.buffers.values()
        is_there = bool(held) and self.strengths.pieces.are([*map(itemgetter(SCALE), held)])
        return is_there and (not self.is_idle or self.places.hold())

    def is_beside(self, other: Scene) -> bool:
        """Whether it stands in just the modules of another, in the same order."""
        one, two = self.buffers.values(), other.buffers.values()
        return self.buffers is other.buffers or (len(one) == len(two) and all(map(is_, one, two)))

    @property
    def fits(self) -> bool:
        """Whether the modules compute where and in what they did when it was made."""
        return self.places.hold() and self.strengths.pieces.are_in_place

    def left_by_all(self, modules: Mapping[str, SidePath]) -> Scene:
        """Return the scene of nobody in the same modules.

        They keep their pieces of strengths, by which it is told that they are where they were.
        """
        nothing = [None] * len(self.buffers)
        columns = {**self.columns, DOWN: nothing, UP: nothing}
        known = [modules[path]._non_persistent_buffers_set for path in self.buffers]
        return replace(self, columns=columns, copied={}, joined={}, names_known=known)

    def without_tensors(self) -> Scene:
        """Return what is left to know of it when its tensors are let go: which modules they stand in."""
        nothing = [None] * len(self.buffers)
        columns = dict.fromkeys(self.columns, nothing)
        return replace(self, columns=columns, joined={}, strengths=StrengthVector.of({}, self.places))

    def slots(self) -> Slots:
        """Return the slots that its factors are written into, by module."""
        rows = zip(self.buffers, self.columns[DOWN], self.columns[UP], strict=True)
        return {path: (down, up) for path, down, up in rows if down is not None and up is not None}

    def tensors(self) -> list[Tensor]:
        """Return all that it puts into the modules."""
        return [tensor for column in self.columns.values() for tensor in column if tensor is not None]


@without_modes()
def build_scene(
    residents: Mapping[str, Resident],
    modules: Mapping[str, SidePath],
    standing: Scene | None = None,
    room: int | None = None,
) -> Scene:
    """Make the scene of `residents`, joined along the rank in their order.

    Args:
        residents: by name.
        modules: the patched modules, by path.
        standing: the one that stands in the modules, which hold it, for this one to share what it can with it: its
            places, its pieces of strengths, and its slots.
        room: the rank of every linear layer's factors, whoever acts there; who finds no room, and who acts on another
            kind of layer, acts through a copy. When None, factors have the joined rank, where somebody acts. Slots are
            left as they are, for `fill_slots` to write the joined factors.
    """
    acting = {path: modules[path] for resident in residents.values() for path in resident.deltas}
    here = acting if room is None else modules
    places = standing.places if standing is not None and standing.places.are_of(here.keys()) else Places(here)
    joined: dict[str, dict[str, LowRank]] = {}
    in_copies: set[str] = set()
    for name, resident in residents.items():
        for path, delta in resident.deltas.items():
            place, takes = places[path], modules[path].lorry_takes_factors
            pair = resident.factors(path, place.device, place.dtype) if takes else None
            if pair is not None:
                joined.setdefault(path, {})[name] = pair
            if pair is None or delta.part("bias") is not None:
                in_copies.add(path)
    if room is not None:
        found = joined
        joined = {path: {} for path, module in here.items() if room and isinstance(module, LinearSidePath)}
        for path, pairs in found.items():
            fitting = _with_room(pairs, room if path in joined else 0)
            if fitting:
                joined[path] = fitting
            if len(fitting) < len(pairs):
                in_copies.add(path)
    copied = {
        path: tuple(name for name, resident in residents.items() if path in resident.deltas)
        for path in acting
        if path in in_copies
    }
    alike = standing if standing is not None and standing.places is places and standing.room == room else None
    strengths = StrengthVector.of(joined, places, room, None if alike is None else alike.strengths.pieces)
    pieces = strengths.pieces
    if alike is not None and alike.strengths.pieces is not pieces:
        alike = None
    buffers = {path: modules[path]._buffers for path in pieces.paths} if alike is None else alike.buffers
    if alike is not None and room is not None:
        return Scene(buffers, alike.columns, copied, joined, strengths, places, room)
    made = _join(joined) if room is None else empty_slots(joined, modules, places, room)
    tensors = [made[path] for path in buffers]
    columns = {DOWN: [down for down, _ in tensors], UP: [up for _, up in tensors], SCALE: pieces.tensors}
    return Scene(buffers, columns, copied, joined, strengths, places, room)


def _with_room(pairs: Pairs, room: int) -> dict[str, LowRank]:
    """Return the first of `pairs` whose ranks fit into `room` together."""
    fitting = {}
    for name, pair in pairs.items():
        if pair.rank > room:
            break
        fitting[name], room = pair, room - pair.rank
    return fitting


def _join(pairs_of: Mapping[str, Pairs]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return down and up of each module: as they are of one adapter, concatenated along the rank of several.

    What is concatenated goes into one block of memory a device: one copy of its bytes.
    """
    pairs = {path: list(found.values()) for path, found in pairs_of.items()}
    several = {path: found for path, found in pairs.items() if len(found) > 1}
    sizes: dict[torch.device, int] = {}
    for found in several.values():
        device = found[0].down.device
        downs, ups = sum(pair.down.nbytes for pair in found), sum(pair.up.nbytes for pair in found)
        sizes[device] = sizes.get(device, 0) + padded(downs) + padded(ups)
    blocks = {device: Block(nbytes, device) for device, nbytes in sizes.items()}
    joined, jobs = dict[str, tuple[Tensor, Tensor]](), list[Callable[[], object]]()
    for path, found in pairs.items():
        first = found[0]
        if path not in several:
            joined[path] = (first.down, first.up)
            continue
        rank = sum(pair.rank for pair in found)
        block = blocks[first.down.device]
        down = block.take((rank, *first.down.shape[1:]), first.down.dtype)
        up = block.take((first.up.shape[0], rank), first.up.dtype)
        here = [
            partial(torch.cat, [pair.down for pair in found], out=down),
            partial(torch.cat, [pair.up for pair in found], dim=1, out=up),
        ]
        if down.device.type == "cpu":
            jobs += here
        else:  # on the stream of this thread
            for job in here:
                job()
        joined[path] = (down, up)
    run_side_by_side(jobs)
    return joined
