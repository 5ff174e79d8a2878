"""What a file holds, before anybody knows what its keys mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

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
