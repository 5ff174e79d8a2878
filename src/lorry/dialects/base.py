"""The contract of a dialect: one naming convention of adapter files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

from lorry.adapters import Adapter
from lorry.dialects._named import read_named
from lorry.errors import UnsupportedAdapterError
from lorry.files import TensorFile

BlockNames = Literal["diffusers", "original", "trained"]
"""Whose names of a model's blocks a dialect's files have, where diffusers and the original checkpoint differ:
`"trained"` is kohya's, which has the names of the model that its trainers train."""


class Dialect(ABC):
    """Reads, and where it can writes, the files of one naming convention.

    A dialect is a value without state. It knows names, shapes and metadata; live models are no concern of it.
    """

    name: ClassVar[str]
    """What users and reports call it."""
    before: ClassVar[tuple[str, ...]] = ()
    """The dialects that it takes a file from when both claim it."""
    block_names: ClassVar[BlockNames] = "diffusers"
    numbers_parts: ClassVar[bool] = False
    """Whether the layers of one that the original checkpoint has fused stand each by itself, under its name and their
    numbers: `qkv.0` is q."""
    only_for: ClassVar[tuple[str, ...]] = ()
    """The classes of models, in diffusers, that files of this dialect are for; none where they are for any."""

    @abstractmethod
    def claims(self, file: TensorFile) -> bool:
        """Whether a file is of this dialect, by its keys, shapes and metadata; never raises."""

    def read(self, file: TensorFile) -> Adapter:
        """Return the adapter that a file of this dialect holds: by default one whose keys name its modules.

        Every key of the file ends in an entry, in `ignored` or in `unknown`. The deltas share the file's tensors.

        Raises:
            UnsupportedAdapterError: it holds tensors of a family that lorry cannot apply.
            FormatError: its tensors contradict each other.
        """
        return read_named(file, self.name)

    @property
    def is_written(self) -> bool:
        """Whether lorry writes this dialect."""
        return type(self).write is not Dialect.write

    def obstacles(self, adapter: Adapter) -> Mapping[str, str]:
        """Return, by target, what of an adapter this dialect has no names for; nothing where it can be written.

        Raises:
            UnsupportedAdapterError: this dialect is not written.
        """
        raise UnsupportedAdapterError(f"lorry reads the dialect {self.name!r} and does not write it.")

    def write(self, adapter: Adapter) -> TensorFile:
        """Return a file of this dialect that holds an adapter; its tensors are the adapter's.

        Raises:
            UnsupportedAdapterError: this dialect is not written, or cannot carry what the adapter holds.
        """
        raise UnsupportedAdapterError(f"lorry reads the dialect {self.name!r} and does not write it.")
