"""Build a layer's delta from its tensors: the family's own, with a magnitude and a bias where there are such."""

from __future__ import annotations

from torch import Tensor

from lorry.algebra import Delta, DoraDelta, FullDelta, PartsDelta, ReplaceDelta
from lorry.dialects._families import Family
from lorry.dialects._parts import Built, LayerParts
from lorry.errors import FormatError


def build(family: Family, parts: LayerParts) -> Built:
    """Return the delta of one layer.

    Raises:
        FormatError: its tensors do not fit each other.
    """
    parts.check_dtypes()
    built = family.build(parts)
    return Built(_with_bias(_with_magnitude(built.delta, parts), parts), built.source)


def _with_magnitude(delta: Delta, parts: LayerParts) -> Delta:
    """Make a DoRA of a delta where there is a magnitude.

    LyCORIS and OneTrainer write (out, 1) or (1, in), and mean the axis that is longer; PEFT's is always of the rows,
    though (1, out, 1, 1) for a convolution.
    """
    both = [role for role in ("dora_scale", "magnitude") if role in parts.tensors]
    if not both:
        return delta
    if len(both) > 1:
        raise FormatError("it has two magnitudes, `dora_scale` and `magnitude`.")
    magnitude = parts.tensors[both[0]]
    return DoraDelta(delta, magnitude, both[0] == "dora_scale" and _is_of_columns(delta, magnitude))


def _is_of_columns(delta: Delta, magnitude: Tensor) -> bool:
    one_row = magnitude.numel() == 1 and delta.shape[0] == 1
    return magnitude.ndim > 1 and magnitude.shape[0] == 1 and not one_row


def _with_bias(delta: Delta, parts: LayerParts) -> Delta:
    """Put the delta of a bias beside a delta: added with the scale of a LoRA (PEFT's), without one, or a whole bias."""
    roles = [role for role in ("diff_b", "lora_bias", "saved_bias") if role in parts.tensors]
    if isinstance(delta, PartsDelta) or not roles:
        return delta
    if len(roles) > 1:
        raise FormatError(f"it has two biases, `{parts.keys[roles[0]]}` and `{parts.keys[roles[1]]}`.")
    bias = parts.tensors[roles[0]]
    if roles[0] == "saved_bias":
        return PartsDelta(delta, ReplaceDelta(bias))
    return PartsDelta(delta, FullDelta(bias, delta.rank_scale if roles[0] == "lora_bias" else 1.0))
