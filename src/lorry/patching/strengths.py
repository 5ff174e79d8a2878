"""The strengths of all side paths of a model: the memory that modules hold, and what adapters write into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from operator import is_
from typing import NamedTuple, Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.graph import increment_version

from lorry.algebra import LowRank
from lorry.patching.memory import count_views
from lorry.patching.modes import without_modes
from lorry.patching.places import Places
from lorry.patching.strength import Strength
from lorry.patching.undo import Undo

Layout = Sequence[tuple[torch.device, Sequence[str], Sequence[int]]]
"""By device: the paths of its modules, and how many numbers each has."""


@final
@dataclass(eq=False, slots=True)
class Pieces:
    """Memory for one float32 number of every rank of every module, of which each module holds a piece."""

    layout: Layout
    tensors: Sequence[Tensor]
    """The pieces."""
    host: NDArray[np.float32]
    """All numbers: the memory of the pieces on the CPU, and what those elsewhere are copies of."""
    _whole: Tensor
    """The same memory, as a tensor."""
    _elsewhere: Sequence[tuple[Tensor, Tensor]]
    """The memory of the pieces on other devices, each with its part of `host`."""
    _addresses: Sequence[int]
    """Where the pieces begin."""
    _marks: Sequence[Tensor]
    """Of each memory, that of `host` first: the whole of it and the first piece there."""
    _begins: Sequence[int]
    """Where these begin."""
    _memories: Sequence[int]
    """What torch knows each memory by, that of `host` first."""
    _views: list[int] | None
    """How many tensors see each; None where that cannot be told, and once others than these do."""
    last: tuple[StrengthVector, Sequence[Strength]] | None = None
    """What they hold: the strengths of the adapters of a vector. Nothing was written yet where it is None."""

    @classmethod
    def of(cls, layout: Layout) -> Self:
        """Make them, of zeros."""
        whole, tensors, elsewhere = _zeros(layout)
        addresses = [*map(Tensor.data_ptr, tensors)]
        wholes = [whole, *(there for there, _ in elsewhere)]
        numbers = accumulate((len(paths) for _, paths, _ in layout), initial=0)
        marks = [*wholes, *(tensors[number] for number in numbers if number < len(tensors))]
        begins = [*map(Tensor.data_ptr, marks)]
        memories = [one.untyped_storage()._cdata for one in wholes]
        pieces = cls(
            layout, tensors, whole.numpy(), whole, elsewhere, addresses, marks, begins, memories, None
        )
        pieces._views = pieces._count_views()
        return pieces

    @property
    def paths(self) -> list[str]:
        """The modules that have a piece, in the order of these."""
        return [path for _, paths, _ in self.layout for path in paths]

    def are(self, tensors: Sequence[object]) -> bool:
        """Whether tensors are these, in their order, where they were made: see `are_in_place`."""
        return (
            len(tensors) == len(self.tensors) and all(map(is_, tensors, self.tensors)) and self.are_in_place
        )

    @property
    def are_in_place(self) -> bool:
        """Whether all pieces are still views of the memory that is written into: offloading gives a tensor another.

        The views of a memory are counted by it, which tells of all of them at once. A view of somebody else would make
        up for a piece that is gone, so that from the first of these on every piece is asked. What it cannot tell is
        asked of the first piece: whether the memory itself is elsewhere, with all its views (`share_memory`, and what
        torch sends to another process), and whether all pieces went away at once and left as many views behind, as
        diffusers' offloading by stream does.
        """
        if (
            self._views is not None
            and self._views == self._count_views()
            and self._begins == [*map(Tensor.data_ptr, self._marks)]
        ):
            return True
        self._views = None
        return self._addresses == [*map(Tensor.data_ptr, self.tensors)]

    def _count_views(self) -> list[int] | None:
        return None if count_views is None else [*map(count_views, self._memories)]

    def send(self) -> None:
        """Bring what numpy wrote into `host` to the other devices.

        Autograd is told, which refuses a backward through what was computed from the numbers before.
        """
        increment_version(self._whole)
        for vector, part in self._elsewhere:
            vector.copy_(part)


def _zeros(layout: Layout) -> tuple[Tensor, list[Tensor], list[tuple[Tensor, Tensor]]]:
    """Return the memory of all numbers, the pieces, and the memory on other devices with its part of all."""
    lengths = [sum(sizes) for _, _, sizes in layout]
    whole = torch.zeros(sum(lengths), dtype=torch.float32, device="cpu")
    tensors: list[Tensor] = []
    elsewhere: list[tuple[Tensor, Tensor]] = []
    for (device, _, sizes), part in zip(layout, whole.split(lengths), strict=True):
        vector = part
        if device.type != "cpu":
            vector = torch.zeros_like(part, device=device)
            elsewhere.append((vector, part))
        tensors += vector.split(sizes)
    return whole, tensors, elsewhere


class _Each(NamedTuple):
    """Of each place in the pieces. In numpy: torch's threads would take longer to meet than the products take."""

    adapters: NDArray[np.int64]
    """The number of the adapter; of any where no factors are."""
    scales: NDArray[np.float64]
    """The scale of its file."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class StrengthVector:
    """The strengths of some adapters at every rank of every module: strength times the scale of the file there.

    They are written into `pieces`, which modules hold as their `lorry_scale`, so that a new strength is one small
    write, whatever their number. Adapters of the same ranks in the same modules have their pieces in common.
    """

    pieces: Pieces
    _names: Sequence[str]
    """The adapters that it has strengths of."""
    _parts: Sequence[tuple[int, str]]
    """For each run of places with one strength, the number of its adapter and the path of its module."""
    _ranks: NDArray[np.int64]
    """The lengths of the runs."""
    _each: _Each
    """Vectors that are alike have it in common."""

    @classmethod
    def of(
        cls,
        pairs: Mapping[str, Mapping[str, LowRank]],
        places: Places,
        room: int | None = None,
        standing: Pieces | None = None,
    ) -> Self:
        """Make the vector for the factors of each module by adapter; its numbers are written later.

        Args:
            pairs: by module path, by adapter.
            places: of the modules.
            room: the length of every piece, zeros after the joined ranks; the joined rank itself when None.
            standing: what the modules hold now, which is written into where it has the lengths.
        """
        devices: dict[torch.device, list[str]] = {}
        for path in pairs:
            devices.setdefault(places[path].device, []).append(path)
        numbers: dict[str, int] = {}
        parts: list[tuple[int, str]] = []
        scales: list[float] = []
        ranks: list[int] = []
        layout: list[tuple[torch.device, list[str], list[int]]] = []
        for device, paths in devices.items():
            sizes: list[int] = []
            for path in paths:
                joined = 0
                for name, pair in pairs[path].items():
                    rank = pair.rank
                    parts.append((numbers.setdefault(name, len(numbers)), path))
                    scales.append(pair.scale)
                    ranks.append(rank)
                    joined += rank
                if room is not None:
                    parts.append((0, path))
                    scales.append(0.0)
                    ranks.append(room - joined)
                    joined = room
                sizes.append(joined)
            layout.append((device, paths, sizes))
        pieces = standing if standing is not None and standing.layout == layout else Pieces.of(layout)
        adapters = np.array([number for number, _ in parts], dtype=np.int64)
        lengths = np.array(ranks, dtype=np.int64)
        each = _Each(adapters.repeat(lengths), np.array(scales, dtype=np.float64).repeat(lengths))
        if pieces.last is not None and all(map(np.array_equal, each, pieces.last[0]._each)):
            each = pieces.last[0]._each
        return cls(pieces, [*numbers], parts, lengths, each)

    def write(self, strengths: Mapping[str, Strength], undo: Undo) -> None:
        """Write the strengths of the adapters into the pieces, where others stand there."""
        own = [strengths[name] for name in self._names]
        if self.pieces.last is not None:
            before, standing = self.pieces.last
            if before._each is self._each and standing == own:
                return
            undo.on_failure(partial(before._write, standing))
        undo.set_attribute(self.pieces, "last", (self, own))
        self._write(own)

    def _write(self, own: Sequence[Strength]) -> None:
        self._work_out(own, self.pieces.host)
        self.pieces.send()

    @without_modes()
    def apart(self, strengths: Mapping[str, Strength]) -> list[Tensor]:
        """Return what the pieces would be at these strengths, in memory of their own."""
        apart = Pieces.of(self.pieces.layout)
        self._work_out([strengths[name] for name in self._names], apart.host)
        apart.send()
        return [*apart.tensors]

    def _work_out(self, own: Sequence[Strength], out: NDArray[np.float32]) -> None:
        if any(strength.by_path is not None for strength in own):
            each = np.array([own[number].at(path) for number, path in self._parts]).repeat(self._ranks)
        elif len(own) > 1:
            each = np.array([strength.value for strength in own])[self._each.adapters]
        else:
            each = own[0].value if own else 0.0
        np.multiply(self._each.scales, each, out=out, casting="same_kind")
