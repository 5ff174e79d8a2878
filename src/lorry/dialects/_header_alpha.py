"""One alpha for all layers of a MiniMax-H3 file, which some of its trainers write into the header as `alpha`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from lorry.dialects._alphas import Alpha, check_alpha
from lorry.dialects._rules import Rules
from lorry.files import TensorFile
from lorry.names import Target

KEY = "alpha"


@final
@dataclass(frozen=True, slots=True)
class HeaderAlpha(Rules):
    """The alpha of every layer that has none of its own.

    Source: diffusers 0.42.1, `loaders/lora_pipeline.py`, `MiniMaxH3LoraLoaderMixin.lora_state_dict`.
    """

    value: float

    def alpha(self, target: Target, rank: int, is_kernel: bool) -> Alpha:
        return Alpha(self.value, False, "metadata")

    def full_scale(self, target: Target) -> float | None:
        return None

    def option(self, target: Target, name: str) -> object:
        return None


def find_header_alpha(file: TensorFile, has_alphas: bool) -> HeaderAlpha | None:
    """Return the header's alpha of a MiniMax-H3 file without alpha tensors; None for others.

    Raises:
        FormatError: it is no number that a trainer can have meant.
    """
    if has_alphas or KEY not in file.metadata or not any("attn.qkv_proj" in key for key in file.tensors):
        return None
    written = file.metadata[KEY]
    try:
        value: object = float(written)
    except ValueError:
        value = written
    return HeaderAlpha(check_alpha(value, f"`{KEY}` in the header of {file.source}"))
