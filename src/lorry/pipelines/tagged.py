"""What a tag of a prompt means on one component."""

from __future__ import annotations

from torch import nn

from lorry.names import TEXT_ENCODERS
from lorry.patching import Strength, check_strength
from lorry.pipelines.block_weights import block_factors, text_encoder_factor
from lorry.pipelines.schedules import Between, Points, Schedule, Times
from lorry.prompts import LoraTag


def strength_of(tag: LoraTag, component: str, model: nn.Module) -> Strength:
    """Return the strength that a tag asks for on a component of a pipeline.

    Raises:
        StateError: the model does not have the blocks that the tag gives factors for, or a strength is beyond float32.
    """
    for number in (tag.scale, tag.text_encoder_scale):
        check_strength(number, f"`{tag}`")
    if component in TEXT_ENCODERS:
        factor = 1.0 if tag.blocks is None else text_encoder_factor(tag.blocks, component)
        return Strength(tag.text_encoder_scale * factor)
    factors = {} if tag.blocks is None else block_factors(tag.blocks, model)
    scale = 1.0 if tag.points else tag.scale
    by_path = {path: scale * factor for path, factor in factors.items() if factor != 1.0}
    return Strength(scale, by_path or None, _schedule(tag))


def _schedule(tag: LoraTag) -> Schedule | None:
    """The strength by step, where the tag says any."""
    points = [Points(tag.points)] if tag.points else []
    between = [] if tag.start is None and tag.stop is None else [Between(tag.start, tag.stop)]
    found = (*points, *between)
    return found[0] if len(found) == 1 else Times(found) if found else None
