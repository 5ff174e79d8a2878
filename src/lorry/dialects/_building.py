"""Build a layer's delta from its tensors: the family's own, with a magnitude and a bias where there are such."""

from __future__ import annotations

from torch import Tensor

from lorry.algebra import Delta, DoraDelta, FullDelta, PartsDelta
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
    """Put the delta of a bias beside a delta. PEFT's has the scale of its LoRA, `diff_b` none."""
    if isinstance(delta, PartsDelta) or not {"diff_b", "lora_bias"} & parts.tensors.keys():
        return delta
    if {"diff_b", "lora_bias"} <= parts.tensors.keys():
        raise FormatError("it has two biases, `diff_b` and `lora_B.bias`.")
    if "diff_b" in parts.tensors:
        return PartsDelta(delta, FullDelta(parts.tensors["diff_b"]))
    return PartsDelta(delta, FullDelta(parts.tensors["lora_bias"], delta.rank_scale))
