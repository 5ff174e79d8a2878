"""What a file holds, before anybody knows what its keys mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self, final

from torch import Tensor

from lorry.background import there
from lorry.files._layout import Spans


@final
@dataclass(frozen=True, eq=False, slots=True)
class TensorFile:
    """Named tensors and text, as a file holds them."""

    tensors: Mapping[str, Tensor]
    """CPU views into a memory map of the file or into one block of memory, or whatever tensors a user gave."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The text of a safetensors header; empty where the container has none."""
    source: str = "a state dict"
    """Where it came from, for messages."""
    config: Mapping[str, object] | None = None
    """The parsed `adapter_config.json` that belongs to it, or None."""
    spans: Spans | None = None
    """The layout of a whole safetensors file, one object for all files of the same; None of anything else."""
    arrived: Callable[[], object] = there
    """Waits until the bytes of the tensors are there: of a file that is read early, a thread still reads them."""

    block: Tensor | None = None
    """(bytes,) of uint8: the memory that all its tensors are views of, where it was read into memory for them alone."""

    def whole(self) -> Self:
        """Wait until all of it is there, and return it.

        Raises:
            BrokenFileError: it was cut off meanwhile.
        """
        self.arrived()
        return replace(self, arrived=there)
