"""Original names of a transformer's modules, by the tables that adapters are read by too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from lorry.binding.tables import Piece, find_model
from lorry.errors import FormatError
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
        FormatError: the original has a layer of diffusers' model in two.
    """
    found = find_model(of for name in names for of in (name.rpartition(".")[0], name))
    model, modules = found or (None, {})
    places: dict[str, Place] = {}
    for name, key in names.items():
        module, _, parameter = name.rpartition(".")
        if name in modules:  # a parameter of a block's own
            places[modules[name][0].path] = Place(path, key)
            continue
        if module not in modules:
            places[name] = Place(path, key)
            continue
        _check_whole(path, module, modules[module], model)
        parameter = PARAMETERS.get(parameter, parameter)
        for own, spans in _spans(modules[module], len(tensors[key])):
            places[f"{own}.{parameter}"] = Place(path, key, spans)
    return places, model


def _check_whole(path: Path, module: str, pieces: Sequence[Piece], model: str | None) -> None:
    """Raise a FormatError where an original's rows are only some of those of a module."""
    for piece in pieces:
        if len({other.part for other in pieces if other.path == piece.path}) < piece.of:
            raise FormatError(
                f"{path}: `{module}` is only a part of `{piece.path}` of diffusers' {model}, expected all of it. "
                "Such a checkpoint is not read from one file: give a folder in diffusers' layout."
            )


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
