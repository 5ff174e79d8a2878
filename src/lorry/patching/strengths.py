"""The strengths of all side paths of a model, as one vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, count
from typing import Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorry.algebra import LowRank
from lorry.patching.modes import without_modes
from lorry.patching.places import Places
from lorry.patching.strength import Strength
from lorry.patching.undo import Undo


@final
@dataclass(frozen=True, eq=False, slots=True)
class StrengthVector:
    """One float32 number for every rank of every module: strength times the scale of the adapter's file there.

    Modules hold pieces of it as their `lorry_scale`, so that a new strength is one small write, whatever their number.
    """

    pieces: Mapping[str, Tensor]
    """By module path: (joined rank,), a view of the vector."""
    _vectors: Sequence[Tensor]
    """The vector, cut by the devices that it lies on."""
    _sizes: Sequence[Sequence[int]]
    """The lengths of the pieces, by device."""
    _addresses: Sequence[int]
    """Where the pieces begin."""
    _modules: Mapping[str, Sequence[str]]
    """By adapter: the paths of its modules. Counted through, they number the strengths."""
    _numbers: NDArray[np.int64]
    """For each place in the vectors, the number of its strength; of any where no factors are."""
    _scales: NDArray[np.float64]
    """For each place, the scale of the file. In numpy: torch's threads would take longer to meet than this takes."""
    _written: dict[str, Mapping[str, Strength]] | None
    """The last strengths that were written, under "last". None where others write in the same memory."""

    @classmethod
    def of(
        cls,
        pairs: Mapping[str, Mapping[str, LowRank]],
        places: Places,
        room: int | None = None,
        standing: StrengthVector | None = None,
    ) -> Self:
        """Make the vector for the factors of each module by adapter; its numbers are written later.

        Args:
            pairs: by module path, by adapter.
            places: of the modules.
            room: the length of every piece, zeros after the joined ranks; the joined rank itself when None.
            standing: one of the same modules and room, whose memory is to be written in. Else new memory is.
        """
        modules: dict[str, list[str]] = {}
        devices: dict[torch.device, list[str]] = {}
        for path, here in pairs.items():
            for name in here:
                modules.setdefault(name, []).append(path)
            devices.setdefault(places[path].device, []).append(path)
        firsts = dict(zip(modules, accumulate(map(len, modules.values()), initial=0), strict=False))
        counters = {name: count(first) for name, first in firsts.items()}
        numbers = {path: {name: next(counters[name]) for name in here} for path, here in pairs.items()}
        number: list[int] = []
        scale: list[float] = []
        rank: list[int] = []
        sizes: list[list[int]] = []
        for paths in devices.values():
            sizes.append([])
            for path in paths:
                joined = 0
                for name, pair in pairs[path].items():
                    number.append(numbers[path][name])
                    scale.append(pair.scale)
                    rank.append(pair.rank)
                    joined += pair.rank
                if room is not None:
                    number.append(0)
                    scale.append(0.0)
                    rank.append(room - joined)
                    joined = room
                sizes[-1].append(joined)
        if standing is None:
            vectors = [
                torch.zeros(sum(lengths), dtype=torch.float32, device=device)
                for device, lengths in zip(devices, sizes, strict=True)
            ]
            pieces = dict[str, Tensor]()
            for paths, vector, lengths in zip(devices.values(), vectors, sizes, strict=True):
                pieces.update(zip(paths, vector.split(lengths), strict=True))
        else:
            vectors, pieces = standing._vectors, standing.pieces
        return cls(
            pieces,
            vectors,
            sizes,
            [*map(Tensor.data_ptr, pieces.values())],
            modules,
            np.array(number, dtype=np.int64).repeat(rank),
            np.array(scale, dtype=np.float64).repeat(rank),
            {} if room is None else None,
        )

    def are(self, tensors: Iterable[Tensor]) -> bool:
        """Whether tensors are its pieces, in their order, and still views of the vector.

        Offloading puts other memory under a module's buffers, or other buffers into it.
        """
        return self._addresses == [*map(Tensor.data_ptr, tensors)]

    def write(self, strengths: Mapping[str, Strength], undo: Undo) -> None:
        """Write the strengths of the adapters into the vector, where it has not just these."""
        if self._written is not None:
            if self._written.get("last") == strengths:
                return
            undo.set_item(self._written, "last", strengths)
        for vector, values in zip(self._vectors, self._values(strengths), strict=True):
            undo.write(vector, values)

    @without_modes()
    def apart(self, strengths: Mapping[str, Strength]) -> dict[str, Tensor]:
        """Return what the pieces would be at these strengths, in memory of their own."""
        values = zip(self._vectors, self._values(strengths), self._sizes, strict=True)
        pieces = [piece for own, new, sizes in values for piece in new.to(own.device).split(sizes)]
        return dict(zip(self.pieces, pieces, strict=True))

    def _values(self, strengths: Mapping[str, Strength]) -> tuple[Tensor, ...]:
        each = [] if self._modules else [0.0]
        for name, paths in self._modules.items():
            strength = strengths[name]
            each += [strength.value] * len(paths) if strength.by_path is None else map(strength.at, paths)
        values = (np.array(each)[self._numbers] * self._scales).astype(np.float32)
        return torch.from_numpy(values).split([len(vector) for vector in self._vectors])
