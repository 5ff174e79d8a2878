"""Parts of a model by a pattern, in the words that every command and method shares."""

from __future__ import annotations

import re
from functools import cache

from lorry.binding.kinds import kind_of
from lorry.names import DENOISER, DENOISERS, TEXT_ENCODERS, Target


def covers(pattern: str, target: Target) -> bool:
    """Whether a pattern means a module, or something that it is a part of.

    A pattern is a component (`unet`, `denoiser`, `text_encoder`, `text_encoders`, …), a kind of layer (`attention`,
    `convolution`, …), or whole segments of a module's path in a row: `down_blocks.1`, `attn2`, `to_q`. A `*` stands for
    any characters, and `.` and `_` are the same, since flattened names cannot tell them apart.
    """
    component = target.component
    groups = {DENOISER: (DENOISER, *DENOISERS), "text_encoders": TEXT_ENCODERS}
    if pattern in groups or pattern in (*DENOISERS, *TEXT_ENCODERS):
        return component in groups.get(pattern, (pattern,))
    return pattern == kind_of(target) or has_segments(pattern, target.path)


def has_segments(pattern: str, name: str) -> bool:
    """Whether a name has the segments of a pattern in a row."""
    return _segments(pattern).search(name.replace(".", "_")) is not None


@cache
def _segments(pattern: str) -> re.Pattern[str]:
    inner = re.escape(pattern.replace(".", "_")).replace(r"\*", r"\w*")
    return re.compile(rf"(^|_){inner}(_|$)")
