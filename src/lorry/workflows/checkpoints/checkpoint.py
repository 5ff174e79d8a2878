"""The parameters of a model on the disk, under the names that its modules have in diffusers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from lorry.files import Closing, PickleReader, TensorReader

Span = tuple[int, int]
"""The first row, and one past the last."""


@final
@dataclass(frozen=True, slots=True)
class Place:
    """Where a parameter lies: a tensor of a file, some rows of one, one with its axes exchanged, or several."""

    file: Path
    keys: tuple[str, ...]
    """One tensor, or those that hold its rows one after the other."""
    spans: tuple[Span, ...] = ()
    """The rows that are its, in its order; none for all of them."""
    transposed: bool = False

    def of(self, *tensors: Tensor) -> Tensor:
        """Return the parameter of the tensors that it lies in: a view where its rows are in a row, else a copy."""
        parts = [tensors[0][first:last] for first, last in self.spans] or tensors
        part = parts[0] if len(parts) == 1 else torch.cat(tuple(parts))
        return part.T if self.transposed else part

    def put(self, tensors: Sequence[Tensor], parameter: Tensor) -> None:
        """Write a new parameter into the tensors that it lies in."""
        rows = parameter.T if self.transposed else parameter
        row = 0
        for tensor in tensors:
            for first, last in self.spans or ((0, len(tensor)),):
                tensor[first:last] = rows[row : row + last - first]
                row += last - first


Reader = TensorReader | PickleReader
Places = Mapping[str, Place]
"""{parameter of a component: where it lies}."""
CLIP_ROOT = "text_model."
"""A level of CLIP's names that files have and transformers 5 has dropped: left out of the names here."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class Checkpoint(Closing):
    """A model on the disk. Nothing but headers is read until `read`. Use it as a context manager."""

    source: Path
    components: Mapping[str, Places]
    """By pipeline attribute: `unet`, `text_encoder`, …"""
    classes: Mapping[str, str]
    """The class of each component, where the files tell it."""
    readers: Mapping[Path, Reader]
    """Every file of weights that the components lie in."""

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder in diffusers' layout; else one file."""
        return self.source.is_dir()

    def outline(self, place: Place) -> Tensor:
        """Return a parameter's dtype and shape, on the meta device."""
        tensors = self.readers[place.file].outline.tensors
        return place.of(*(tensors[key] for key in place.keys))

    def read(self, place: Place) -> Tensor:
        """Return a parameter, in memory of its own."""
        return place.of(*map(self.readers[place.file].read, place.keys))

    def close(self) -> None:
        """Close all files."""
        for reader in self.readers.values():
            reader.close()
