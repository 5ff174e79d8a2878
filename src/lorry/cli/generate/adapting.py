"""Adapters on the pipeline: each file loaded once, and set for one picture after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, final

from lorry.binding import LoadReport
from lorry.cli.drawing import load_lora
from lorry.cli.generate.naming import Use
from lorry.cli.options import LoraChoice
from lorry.errors import StateError


@final
@dataclass(eq=False, slots=True)
class Wardrobe:
    """The adapters of all pictures, loaded on a pipeline, and what it wears now."""

    pipeline: Any
    names: dict[str, list[str]]
    """{source: what it is called on the pipeline}, as often as one picture names it."""
    reports: dict[str, LoadReport]
    """{source: what its load did}."""
    worn: tuple[Use, ...] = ()

    @classmethod
    def filled(cls, pipeline: Any, outfits: Iterable[Sequence[Use]]) -> Self:
        """Load every adapter that some picture needs, inactive.

        Raises:
            FileError, FormatError, BindingError: one cannot be had, read, understood or applied.
        """
        most: Counter[str] = Counter()
        said: dict[str, str] = {}
        for uses in outfits:
            most |= Counter(use.source for use in uses)
            said |= {use.source: use.said for use in uses}
        wardrobe = cls(pipeline, {}, {})
        for source, count in most.items():
            wardrobe.names[source] = []
            for _ in range(count):
                name = f"lora{sum(map(len, wardrobe.names.values())) + 1}"
                report = load_lora(pipeline, LoraChoice(source), name)
                wardrobe.names[source].append(name)
                wardrobe.reports[source] = replace(report, source=said[source])
        return wardrobe

    def wear(self, uses: tuple[Use, ...], *, fused: bool = False) -> None:
        """Make the adapters of one picture, and no others, act; with `fused`, in the weights."""
        if not self.names or (uses == self.worn and uses):
            return
        if self.pipeline.num_fused_loras:
            self.pipeline.unfuse_lora()
        free = {source: list(names) for source, names in self.names.items()}
        self.pipeline.set_adapters(
            [free[use.source].pop(0) for use in uses], [strength_of(use, self.pipeline) for use in uses]
        )
        if fused and uses:
            self.pipeline.fuse_lora()
        self.worn = uses


def strength_of(use: Use, pipeline: Any) -> Any:
    """Return a tag's strength as `set_adapters` takes it.

    Raises:
        StateError: the tag asks for what cannot be done.
    """
    tag = use.tag
    if tag.blocks is not None or tag.points or tag.start is not None or tag.stop is not None:
        raise StateError(f"{tag}: strengths by block and by step are not applied yet.")
    encoders = [name for name in pipeline.components if name.startswith("text_encoder")]
    return dict.fromkeys(encoders, tag.text_encoder_scale) | {
        name: tag.scale for name in ("unet", "transformer", "transformer_2") if name in pipeline.components
    }
