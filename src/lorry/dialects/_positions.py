"""From layers by position to layers by name: find the walk whose shapes are the file's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from lorry.adapters import Adapter, Embedding, Entry
from lorry.algebra import LoraDelta
from lorry.dialects._walks import CLASSES, CLIP_LAYERS, Step, clip_walk, unet_walk
from lorry.errors import FormatError, UnsupportedAdapterError
from lorry.files import TensorFile
from lorry.names import Target

Factors = dict[tuple[str, int], dict[Literal["up", "down"], str]]
"""The keys of each layer, by component and position."""
Deltas = Mapping[int, LoraDelta]

PLAIN = frozenset({"CrossAttention", "Attention"})
WALKED = (PLAIN | {"GEGLU"}, PLAIN, CLASSES)
"""Sets of classes that versions of the tool walked by default."""
CONTEXTS = (768, 1024)


def read_positions(
    file: TensorFile,
    dialect: str,
    factors: Factors,
    classes: Mapping[str, frozenset[str]],
    embeddings: Sequence[Embedding],
    unknown: list[str],
) -> Adapter:
    """Return the adapter whose layers a file has by position.

    Args:
        file: the file.
        dialect: the name to put on the adapter.
        factors: its keys by component and position.
        classes: which classes were walked, for the components that the metadata says it of.
        embeddings: tokens that were trained along.
        unknown: keys that are not understood; layers that lack a side are added to them.

    Raises:
        UnsupportedAdapterError: classes were walked whose layers are not known by position.
        FormatError: the shapes are those of no known walk, or a layer's two sides do not fit.
    """
    entries: list[Entry] = []
    for component in sorted({component for component, _ in factors}):
        keys = {position: pair for (name, position), pair in factors.items() if name == component}
        whole = {position: (pair["down"], pair["up"]) for position, pair in keys.items() if len(pair) == 2}
        unknown.extend(
            key for position, pair in keys.items() if position not in whole for key in pair.values()
        )
        deltas = {position: _delta(file, *pair) for position, pair in whole.items()}
        walk = _find_walk(component, deltas, classes.get(component), file.source)
        for position, delta in deltas.items():
            entries.append(
                Entry(Target(component, walk[position].path), delta, tuple(sorted(whole[position])))
            )
    entries.sort(key=lambda entry: entry.target)
    left = tuple(sorted(unknown))
    return Adapter(tuple(entries), dialect, (), left, file.metadata, file.source, tuple(embeddings))


def _delta(file: TensorFile, down: str, up: str) -> LoraDelta:
    try:
        return LoraDelta(file.tensors[down], file.tensors[up])
    except FormatError as error:
        raise FormatError(f"{file.source}: `{down}` and `{up}`: {error}") from error


def _find_walk(component: str, deltas: Deltas, classes: frozenset[str] | None, source: str) -> list[Step]:
    walks = list(
        _unet_walks(classes, source) if component == "unet" else _clip_walks(deltas, classes, source)
    )
    for walk in walks:
        if _mismatch(walk, deltas) is None:
            return walk
    raise FormatError(
        f"{source}: {component}: layers are named by position, and the shapes are those of no walk of Stable Diffusion "
        f"1 or 2 that lorry knows. {_mismatch(walks[0], deltas)}"
    )


def _unet_walks(classes: frozenset[str] | None, source: str) -> Iterator[list[Step]]:
    _check_classes(classes, CLASSES, source)
    for walked in WALKED if classes is None else (classes,):
        for last in (False, True):
            for context in CONTEXTS:
                yield unet_walk(walked, context, last)


def _clip_walks(deltas: Deltas, classes: frozenset[str] | None, source: str) -> Iterator[list[Step]]:
    _check_classes(classes, frozenset({"CLIPAttention"}), source)
    width = next((delta.shape[0] for delta in deltas.values()), 0)
    yield clip_walk(max(deltas, default=0) // len(CLIP_LAYERS) + 1, width)


def _check_classes(classes: frozenset[str] | None, known: frozenset[str], source: str) -> None:
    if classes is not None and not classes <= known:
        raise UnsupportedAdapterError(
            f"{source} has layers of {', '.join(sorted(classes - known))} by position; known are those of "
            f"{', '.join(sorted(known))}."
        )


def _mismatch(walk: list[Step], deltas: Deltas) -> str | None:
    for position, delta in sorted(deltas.items()):
        shape = delta.shape if delta.shape[2:] != (1, 1) else delta.shape[:2]
        if position >= len(walk):
            return f"Expected {len(walk)} layers, got one at position {position}."
        if shape != walk[position].shape:
            step = walk[position]
            return f"Position {position}: expected {step.shape} for `{step.path}`, got {shape}."
    return None
