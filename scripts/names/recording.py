"""Which rows of which original module land where: public conversion code, run on tensors whose rows are numbered."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from lorry.binding.tables import Piece

MOST_ROWS = 1_000_000
ROWS = 12
"""Rows of a module for which the conversion has no number of its own: they divide by 2, 3 and 4."""

Convert = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
Landed = dict[str, tuple[Piece, ...]]
"""{original module: the pieces of live modules that its rows are, in their order}."""


def record(
    names: list[str],
    rows: Mapping[str, int],
    convert: Convert,
    parameters: set[str],
    bare: Collection[str] = (),
) -> Landed:
    """Return where the rows of each original module land.

    Args:
        names: of modules (which get a weight and a bias), or of parameters that are called otherwise (`….scale`).
        rows: their number, where the conversion counts on one.
        convert: from the original checkpoint's tensors to those of the live model; it may empty what it is given.
        parameters: of the live model.
        bare: those of `names` that are parameters of no layer, under the same names in the checkpoint.

    Raises:
        ValueError: a tensor lands on no parameter of the model, or a piece of one is lost.
    """
    checkpoint = {}
    for number, name in enumerate(names):
        tagged = _tagged(number, rows.get(name, ROWS))
        if name in bare:
            checkpoint[name] = tagged[:, None]
        elif name.endswith(".scale"):
            checkpoint[name] = tagged
        else:
            checkpoint |= {f"{name}.weight": tagged[:, None], f"{name}.bias": tagged}
    tags = {number for number, name in enumerate(names) if name in bare}
    converted = {
        key: tensor
        for key, tensor in convert(checkpoint).items()
        if key.endswith(".weight") or (tensor is not None and _number(tensor) in tags)
    }
    return _landed(names, converted, parameters)


def record_lora(names: list[str], rows: Mapping[str, int], convert: Convert, parameters: set[str]) -> Landed:
    """Do as `record` with code that converts LoRAs: it is their `up` whose rows are numbered."""
    checkpoint = {}
    for number, name in enumerate(names):
        tagged = _tagged(number, rows.get(name, ROWS))[:, None]
        checkpoint |= {f"{name}.lora_A.weight": torch.ones(1, 1), f"{name}.lora_B.weight": tagged}
    converted = {
        key.removeprefix("transformer.").replace(".lora_B.", "."): tags
        for key, tags in convert(checkpoint).items()
        if key.endswith(".lora_B.weight")
    }
    return _landed(names, converted, parameters)


def _number(tensor: Tensor) -> int:
    """Return which of the originals a tensor's first row is of."""
    return int(tensor.flatten()[0]) // MOST_ROWS


def _tagged(number: int, rows: int) -> Tensor:
    return number * MOST_ROWS + torch.arange(rows, dtype=torch.float64)


def _landed(names: list[str], converted: Mapping[str, Tensor], parameters: set[str]) -> Landed:
    runs: dict[int, list[tuple[int, int, Piece]]] = {}
    for key, tensor in converted.items():
        if tensor is None:
            continue
        tags = [int(tag) for tag in tensor.flatten().tolist()]
        if key not in parameters:
            raise ValueError(f"{names[tags[0] // MOST_ROWS]} lands on {key}, which the model does not have")
        for number, start, stop, piece in _runs(key.removesuffix(".weight"), tags):
            runs.setdefault(number, []).append((start, stop, piece))
    modules = [name.removesuffix(".scale") for name in names]
    return {modules[number]: _in_order(modules[number], found) for number, found in sorted(runs.items())}


def _runs(path: str, tags: list[int]) -> list[tuple[int, int, int, Piece]]:
    """Return the runs of following rows in one live module, as (original's number, first row, one past the last)."""
    starts = [0, *(i for i in range(1, len(tags)) if tags[i] != tags[i - 1] + 1), len(tags)]
    sizes = {stop - start for start, stop in itertools.pairwise(starts)}
    if len(sizes) > 1:
        raise ValueError(f"{path} is made of unequal pieces: {sizes}")
    count = len(starts) - 1
    return [
        (
            tags[start] // MOST_ROWS,
            tags[start] % MOST_ROWS,
            tags[stop - 1] % MOST_ROWS + 1,
            Piece(path, part, count),
        )
        for part, (start, stop) in enumerate(itertools.pairwise(starts))
    ]


def _in_order(name: str, found: list[tuple[int, int, Piece]]) -> tuple[Piece, ...]:
    ordered = sorted(found, key=lambda run: run[0])
    row = 0
    for start, stop, _ in ordered:
        if start != row:
            raise ValueError(f"{name}: rows {row} to {start} are lost or used twice")
        row = stop
    return tuple(piece for _, _, piece in ordered)
