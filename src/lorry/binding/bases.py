"""Which base model an adapter was made for, told from the names and shapes of its layers alone.

A live model is known by the same marks, so that an error can say "made for SDXL, and this is Stable Diffusion 1.5".
Each layer that tells anything leaves the bases that have such a layer; what is left at the end are all that the file
may be for, and where that is more than one, all are said: "FLUX.1 or Chroma".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache

from torch import nn

from lorry.adapters import Adapter
from lorry.binding.base_marks import Base, Layer, Mark
from lorry.binding.further_bases import FURTHER_BASES
from lorry.binding.targets import weight_shape
from lorry.binding.usual_bases import USUAL_BASES

BASES = (*USUAL_BASES, *FURTHER_BASES)
"""The bases that are known; of those that share layers, the likeliest first."""
_TRANSFORMERS = "diffusers.models.transformers"
_SINGLE = re.compile(r"single_(transformer_)?blocks_(?P<number>\d+)_")


def find_bases(layers: Iterable[Layer]) -> tuple[Base, ...]:
    """Return all bases that these layers may be of, the likeliest first; none where no known mark is on them."""
    left, variants, singles = list[Base](), list[Base](), set[int]()
    for layer in layers:
        if single := _SINGLE.match(layer[0]):
            singles.add(int(single["number"]))
        having = _having(layer)
        own = [base for base in having if base.variant_of]
        if own:
            variants = [base for base in variants or own if base in own]
        elif having:
            left = [base for base in left or having if base in having]
        if not (variants if own else left or not having):
            return ()  # layers of several bases
    if variants:
        return tuple(base for base in variants if not left or _is_made_of(base, left))
    whole = tuple(base for base in left if base.singles and singles == set(range(base.singles)))
    return whole or tuple(left)


def _is_made_of(variant: Base, bases: Iterable[Base]) -> bool:
    return any(base.name in variant.variant_of for base in bases)


def _having(layer: Layer) -> list[Base]:
    having: list[Base] = []
    for base, mark in _marks(layer[1][1:2]):
        if base not in having and mark.is_on(layer):
            having.append(base)
    return having


@cache
def _marks(columns: tuple[int, ...]) -> tuple[tuple[Base, Mark], ...]:
    """Return the marks that layers of so many columns can have, with their bases."""
    return tuple((base, mark) for base in BASES for mark in base.marks if mark.has_columns(columns))


def find_base(layers: Iterable[Layer]) -> Base | None:
    """Return the base that these layers are of, or None where they do not tell.

    Of bases that share those layers under the same names it is the likeliest.
    """
    found = find_bases(layers)
    return found[0] if len({base.like or base.name for base in found}) == 1 else None


def base_of_adapter(adapter: Adapter) -> Base | None:
    """Return the base that an adapter was made for, as `find_base` does."""
    return find_base(_layers(adapter))


def is_told(adapter: Adapter) -> bool:
    """Whether an adapter can be of one base alone."""
    return len(find_bases(_layers(adapter))) == 1


def titles_of_adapter(adapter: Adapter) -> str | None:
    """Say what an adapter was made for, as far as its names and shapes tell: "SDXL", "FLUX.1 or Chroma"."""
    return " or ".join(base.title for base in find_bases(_layers(adapter))) or None


def _layers(adapter: Adapter) -> Iterator[Layer]:
    return ((entry.target.path.replace(".", "_"), entry.delta.shape) for entry in adapter.entries)


def base_of_models(models: Mapping[str, nn.Module | None]) -> Base | None:
    """Return the base that live models are, as far as their names, shapes and classes tell.

    A model of diffusers of another class than the base's is not said to be that base, whatever layers it has.
    """
    there = [model for model in models.values() if model is not None]
    found = find_base(
        (path.replace(".", "_"), shape)
        for model in there
        for path, module in model.named_modules()
        if (shape := weight_shape(module)) is not None
    )
    classes = {cls.__name__ for model in there for cls in type(model).__mro__}
    if found is None or found.transformer in classes:
        return found
    named = any(_TRANSFORMERS in cls.__module__ for model in there for cls in type(model).__mro__)
    other = None if found.transformer is not None and named else found
    return next((base for base in BASES if base.transformer in classes and _is_kin(base, found)), other)


def _is_kin(base: Base, other: Base) -> bool:
    return _is_made_of(base, [other]) or (base.like is not None and base.like == other.like)


def find_base_called(name: str) -> Base | None:
    """Return the base of this name, or None."""
    return next((base for base in BASES if base.name == name), None)


def made_for(adapter: Adapter, models: Mapping[str, nn.Module | None]) -> str:
    """Say for an error which base an adapter was made for, and which this is, as far as that can be told."""
    its, this = find_bases(_layers(adapter)), base_of_models(models)
    if not its or this in its or (this is not None and _is_made_of(this, its)):
        return "Was the adapter made for another base model?"
    other = f", and this is {this.title}" if this is not None else ""
    titles = " or ".join(base.title for base in its)
    return f"The adapter was made for another base model: it is for {titles}{other}."
