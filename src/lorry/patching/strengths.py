"""The strengths of all side paths of a model, as one vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    _names: Sequence[str]
    """The adapters that it has strengths of."""
    _parts: Sequence[tuple[int, str]]
    """For each run of places with one strength, the number of its adapter and the path of its module."""
    _ranks: NDArray[np.int64]
    """The lengths of the runs."""
    _adapters: NDArray[np.int64]
    """For each place in the vectors, the number of its adapter; of any where no factors are."""
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
        devices: dict[torch.device, list[str]] = {}
        for path in pairs:
            devices.setdefault(places[path].device, []).append(path)
        numbers: dict[str, int] = {}
        parts: list[tuple[int, str]] = []
        scales: list[float] = []
        ranks: list[int] = []
        sizes: list[list[int]] = []
        for paths in devices.values():
            sizes.append([])
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
                sizes[-1].append(joined)
        adapters = np.array([number for number, _ in parts], dtype=np.int64)
        lengths = np.array(ranks, dtype=np.int64)
        if standing is None:
            vectors = [
                torch.zeros(sum(here), dtype=torch.float32, device=device)
                for device, here in zip(devices, sizes, strict=True)
            ]
            pieces = dict[str, Tensor]()
            for paths, vector, here in zip(devices.values(), vectors, sizes, strict=True):
                pieces.update(zip(paths, vector.split(here), strict=True))
        else:
            vectors, pieces = standing._vectors, standing.pieces
        return cls(
            pieces,
            vectors,
            sizes,
            [*map(Tensor.data_ptr, pieces.values())],
            [*numbers],
            parts,
            lengths,
            adapters.repeat(lengths),
            np.array(scales, dtype=np.float64).repeat(lengths),
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
        own = [strengths[name] for name in self._names]
        if any(strength.by_path is not None for strength in own):
            each = np.array([own[number].at(path) for number, path in self._parts]).repeat(self._ranks)
        elif len(own) > 1:
            each = np.array([strength.value for strength in own])[self._adapters]
        else:
            each = np.array([strength.value for strength in own] or 0.0)
        values = (each * self._scales).astype(np.float32)
        return torch.from_numpy(values).split([len(vector) for vector in self._vectors])
