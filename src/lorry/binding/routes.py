"""Which components of a pipeline a file means: it may name them otherwise, by another number, or not at all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import nn

from lorry.adapters import Adapter, Entry
from lorry.binding.index import ModuleIndex
from lorry.binding.places import place_shapes, whole_shape
from lorry.errors import StateError
from lorry.names import DENOISER, DENOISERS, TEXT_ENCODERS

SECOND = "transformer_2"
"""The denoiser for the later steps, at low noise, of a pipeline that has two."""
_NOISE = re.compile(r"(high|low)[-_ ]?noise", re.IGNORECASE)
_TITLES = ("ss_output_name", "modelspec.title")
_SAMPLE = 5
"""Entries of a file's text encoder that are tried on a pipeline's."""

Models = Mapping[str, nn.Module | None]


def routes(
    adapter: Adapter,
    indexes: Mapping[str, ModuleIndex],
    models: Models,
    denoisers: Sequence[str] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Return the pipeline's components for each component that a file names; none where it has no such thing.

    Args:
        adapter: the file's.
        indexes: of the pipeline's models, by component.
        models: the pipeline's components, None for one that is not loaded.
        denoisers: where the denoiser's part goes, whatever the file says of it, unless it names two of them.

    Raises:
        StateError: one of `denoisers` is no denoiser of the pipeline.
    """
    own = [name for name in DENOISERS if name in models]
    for name in denoisers or ():
        if name not in own:
            raise StateError(f"{name!r} is not among this pipeline's denoisers ({', '.join(own) or 'none'}).")
    named = {name for name in adapter.components if name in (DENOISER, *DENOISERS)}
    if len(named) == 1 and SECOND not in own:  # MiniMax-H3 loads the one of two that a call needs
        own = [name for name in own if models[name] is not None] or own
    chosen = tuple(denoisers or ()) or _by_noise(adapter, own)
    found = _text_encoders(adapter, indexes, models)
    for component in adapter.components:
        if component in named:
            found[component] = _denoisers(component, own, chosen if len(named) == 1 else ())
        elif component not in found:
            found[component] = (component,) if component in models else ()
    return found


def _denoisers(component: str, own: Sequence[str], chosen: tuple[str, ...]) -> tuple[str, ...]:
    if chosen:
        return chosen
    if component in own:
        return (component,)
    return tuple(own[:1]) if component == DENOISER or len(own) == 1 else ()


def _by_noise(adapter: Adapter, own: Sequence[str]) -> tuple[str, ...]:
    """Return the denoiser that a file's name or title means (Wan 2.2), where a pipeline has two."""
    if SECOND not in own:
        return ()
    words = " ".join((adapter.source, *(adapter.metadata.get(key, "") for key in _TITLES)))
    levels = {found.lower() for found in _NOISE.findall(words)}
    return ({"high": own[0], "low": SECOND}[levels.pop()],) if len(levels) == 1 else ()


def _text_encoders(
    adapter: Adapter, indexes: Mapping[str, ModuleIndex], models: Models
) -> dict[str, tuple[str, ...]]:
    """Choose encoders by the paths and shapes that fit: T5 is Flux's second and SD3's third, and trainers mix them up.

    One that the file numbers as the pipeline does stays there. Of what is left, each gets an encoder that nothing else
    of the file is for; one that fits none, the place that it names, or a place that is empty.
    """
    samples = {name: _sample(adapter, name) for name in adapter.components if name in TEXT_ENCODERS}
    found: dict[str, tuple[str, ...]] = {
        name: (name,)
        for name, sample in samples.items()
        if name in indexes and _any_fits(sample, indexes[name])
    }
    for component, sample in samples.items():
        if component not in found:
            taken = {place for places in found.values() for place in places}
            free = [name for name in TEXT_ENCODERS if name in models and name not in taken]
            better = [name for name in free if name in indexes and _any_fits(sample, indexes[name])]
            empty = [name for name in free if models[name] is None]
            named = [component] if component in models else []
            found[component] = tuple((better or named or empty)[:1])
    return found


def _sample(adapter: Adapter, component: str) -> list[Entry]:
    meant = [entry for entry in adapter.entries if entry.target.component == component]
    return meant[:: max(1, len(meant) // _SAMPLE)]


def _any_fits(sample: Sequence[Entry], index: ModuleIndex) -> bool:
    return any(_fits(entry, index) for entry in sample)


def _fits(entry: Entry, index: ModuleIndex) -> bool:
    """Whether an entry has a place in a model, and the shape for it."""
    places = index.find(entry.target)
    whole = whole_shape(place_shapes(places, index.modules)) if places else None
    return whole is not None and entry.delta.fitted(whole) is not None
