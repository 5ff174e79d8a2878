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
            loaded = sum(map(len, wardrobe.names.values()))
            wardrobe.names[source] = [f"lora{loaded + number}" for number in range(1, count + 1)]
            for name in wardrobe.names[source]:
                report = load_lora(pipeline, LoraChoice(source), name)
                wardrobe.reports[source] = replace(report, source=said[source])
        return wardrobe

    def wear(self, uses: tuple[Use, ...], *, fused: bool = False) -> None:
        """Make the adapters of one picture, and no others, act; with `fused`, in the weights."""
        if not self.names or (uses == self.worn and uses):
            return
        if self.pipeline.num_fused_loras:
            self.pipeline.unfuse_lora()
        free = {source: list(names) for source, names in self.names.items()}
        self.pipeline.set_adapters([free[use.source].pop(0) for use in uses], [use.tag for use in uses])
        if fused and uses:
            self.pipeline.fuse_lora()
        self.worn = uses
