"""Original names of a transformer's modules, by the tables that adapters are read by too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from lorry.binding.tables import Piece, find_model, find_pieces_without
from lorry.errors import FormatError, some
from lorry.workflows.checkpoints.checkpoint import Place, Span

PARAMETERS = {"scale": "weight"}
"""What the original checkpoints call a parameter otherwise: that of an RMS norm."""


def transformer_places(
    path: Path, names: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Place], str | None]:
    """Return where a transformer's parameters lie, under diffusers' names, and its class in diffusers.

    Where no table has its names, they are diffusers' own, or of a model that lorry does not know: they stay, and there
    is no class.

    Args:
        path: of the file.
        names: {name of a parameter: the file's key}.
        tensors: the file's, for their shapes.

    Raises:
        FormatError: of a layer that the original has in several, one is missing.
    """
    found = find_model(of for name in names for of in (name.rpartition(".")[0], name))
    model, modules = found or (None, {})
    places: dict[str, Place] = {}
    parts: dict[str, dict[int, str]] = {}
    counts: dict[str, int] = {}
    for name, key in names.items():
        module, _, parameter = name.rpartition(".")
        if name in modules:  # a parameter of a block's own
            places[modules[name][0].path] = Place(path, (key,))
            continue
        if module not in modules:
            places[name] = Place(path, (key,))
            continue
        parameter = PARAMETERS.get(parameter, parameter)
        first = modules[module][0]
        if len(modules[module]) == 1 and first.of > 1:  # rows of a layer that the original has in several
            parts.setdefault(f"{first.path}.{parameter}", {})[first.part] = key
            counts[f"{first.path}.{parameter}"] = first.of
            continue
        pieces, rows = modules[module], len(tensors[key])
        if rows % sum(piece.share for piece in pieces):
            pieces = find_pieces_without(str(model), module) or pieces
        for own, spans in _spans(pieces, rows):
            places[f"{own}.{parameter}"] = Place(path, (key,), spans)
    for own, keys in parts.items():
        if len(keys) < counts[own]:
            raise FormatError(
                f"{path}: `{own}` of diffusers' {model} lies in {counts[own]} tensors, expected all of them, got "
                f"{some(sorted(keys.values()), 3)} alone. The file is not whole: download it again."
            )
        places[own] = Place(path, tuple(key for _, key in sorted(keys.items())))
    return places, model


def _spans(pieces: Sequence[Piece], rows: int) -> Iterator[tuple[str, tuple[Span, ...]]]:
    """Yield each module that an original's rows are, and which of them, in the module's order."""
    if len(pieces) == 1:
        yield pieces[0].path, ()
        return
    unit = rows // sum(piece.share for piece in pieces)
    parts: dict[str, list[tuple[int, Span]]] = {}
    first = 0
    for piece in pieces:
        parts.setdefault(piece.path, []).append((piece.part, (first, first + piece.share * unit)))
        first += piece.share * unit
    for path, listed in parts.items():
        yield path, tuple(span for _, span in sorted(listed))
