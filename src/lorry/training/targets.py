"""Which layers get an adapter: presets by what a layer is for, ends of paths, or a regular expression."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from torch import nn

from lorry.binding import weight_shape
from lorry.errors import StateError, did_you_mean

ATTENTION: Final = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
    "SelfAttention.q",
    "SelfAttention.k",
    "SelfAttention.v",
    "SelfAttention.o",
)
"""The projections of attention layers: in UNets, in the joint attention of SD3 and Flux, in CLIP and in T5."""
FEED_FORWARD: Final = (
    "net.0.proj",
    "net.2",
    "proj_mlp",
    "fc1",
    "fc2",
    "wi",
    "wi_0",
    "wi_1",
    "wo",
)
AROUND: Final = ("proj_in", "proj_out")
"""What leads into and out of the transformer blocks of a UNet, and out of Flux's single blocks."""
CONVOLUTIONS: Final = (
    "conv1",
    "conv2",
    "conv_shortcut",
    "conv_in",
    "conv_out",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
)
PRESETS: Final[Mapping[str, Sequence[str]]] = {
    "attention": ATTENTION,
    "blocks": (*ATTENTION, *FEED_FORWARD, *AROUND),
    "conv": CONVOLUTIONS,
}
"""Parts of models by name, joined with `+` (`blocks+conv`). `full` is every linear and convolution layer."""
FEED_FORWARD_OUT: Final = ("net.2", "fc2", "wo")
"""The layers that (IA)^3 scales on their input, which is the hidden state of a feed-forward block."""

Targets = str | Sequence[str]


def matching(model: nn.Module, targets: Targets) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of `model` that `targets` mean, by path.

    Args:
        model: a denoiser or text encoder.
        targets: a preset (`attention`, `blocks`, `blocks+conv`, `full`, …), `all-linear` as PEFT calls it, the ends of
            paths, or one regular expression for whole paths.
    """
    if targets == "all-linear":
        return ((path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear))
    matches = _matcher(targets)
    return (
        (path, module)
        for path, module in model.named_modules()
        if len(weight_shape(module) or ()) > 1 and not isinstance(module, nn.Embedding) and matches(path)
    )


def check_preset(name: str) -> str:
    """Return `name` when it is made of presets.

    Raises:
        StateError: it is not.
    """
    for part in name.split("+"):
        if part not in PRESETS and part != "full":
            known = [*PRESETS, "full"]
            raise StateError(
                f"There is no preset {part!r}: expected {', '.join(known)}, or several joined with `+`."
                + did_you_mean(part, known)
            )
    return name


def ends_in(path: str, ends: Sequence[str]) -> bool:
    """Whether a path is, or ends after a dot in, one of `ends`."""
    return any(path == end or path.endswith(f".{end}") for end in ends)


def pattern_value(pattern: Mapping[str, Any], path: str, default: Any) -> Any:
    """Return the value of the first key that a path ends in or matches, as PEFT reads `rank_pattern`."""
    return next((value for key, value in pattern.items() if re.search(rf"(^|.*\.)({key})$", path)), default)


def _matcher(targets: Targets) -> Callable[[str], bool]:
    if not isinstance(targets, str):
        return lambda path: ends_in(path, targets)
    parts = targets.split("+")
    if "full" in parts:
        return lambda _: True
    if all(part in PRESETS for part in parts):
        ends = tuple(end for part in parts for end in PRESETS[part])
        return lambda path: ends_in(path, ends)
    return lambda path: re.fullmatch(targets, path) is not None
