"""Write the tables of original names, `src/lorry/binding/tables/*.json`.

    python -m scripts.names.generate

Each table is made by running the conversion code of the installed diffusers on tensors whose rows are numbered, with
the live model on the meta device at full width and few blocks.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

import diffusers
import torch
from diffusers.loaders import lora_conversion_utils, single_file_utils
from scripts.names import flux, further, image, typed, video, wan
from scripts.names.checkpoint import Checkpoint
from scripts.names.patterns import patterns
from scripts.names.recording import Landed, record, record_lora
from torch import nn

from lorry.binding.tables import FOLDER, Piece
from lorry.binding.targets import bare_parameters, carriers, weight_shape

CHECKPOINTS = (
    *flux.CHECKPOINTS,
    *image.CHECKPOINTS,
    *wan.CHECKPOINTS,
    *video.CHECKPOINTS,
    *typed.CHECKPOINTS,
    *further.CHECKPOINTS,
)


def table_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the table of one architecture, as its file holds it.

    Raises:
        ValueError: a name lands nowhere, or a module of the live model is not reached by any.
    """
    model = build(checkpoint)
    landed = _landed(checkpoint, model)
    rows = dict(_rows(checkpoint.typed))
    reached = {piece.path for pieces in landed.values() for piece in pieces}
    spelt_paths = {
        path for _, row in _rows(checkpoint.spelt) for path in _expanded(_paths(row), checkpoint.blocks)
    }
    reached |= {path for row in rows.values() for path in _expanded(_paths(row), checkpoint.blocks)}
    modules = carriers(model)
    there = {path for path, module in modules.items() if weight_shape(module) is not None}
    embeddings = {path for path, module in modules.items() if isinstance(module, nn.Embedding)}
    bare = bare_parameters(model).keys()
    left = [p for p in sorted(there - bare - embeddings - reached) if not re.match(checkpoint.same or "$", p)]
    if left:
        raise ValueError(f"{checkpoint.model}: no original name reaches {left}")
    if (reached | spelt_paths) - there:
        raise ValueError(
            f"{checkpoint.model}: {sorted((reached | spelt_paths) - there)} are no modules of it"
        )
    module = "lora_conversion_utils" if checkpoint.lora else "single_file_utils"
    source = checkpoint.source or f"diffusers.loaders.{module}.{checkpoint.convert}"
    names = {
        name: _with_shares(row, model, checkpoint.blocks)
        for name, row in sorted((patterns(landed) | rows).items())
    }
    spelt = {checkpoint.also(name): row for name, row in names.items()} if checkpoint.also else {}
    spelt |= _older(checkpoint, model)
    spelt |= {name: _with_shares(row, model, checkpoint.blocks) for name, row in _rows(checkpoint.spelt)}
    if checkpoint.writes_also:
        names, spelt = dict(sorted(spelt.items())), names
    also = {name: row for name, row in sorted(spelt.items()) if name not in names}
    table: dict[str, Any] = {"model": checkpoint.model, "source": source}
    table |= {"like": checkpoint.like} if checkpoint.like else {}
    table |= {"lacks": checkpoint.lacks.split()} if checkpoint.lacks else {}
    table |= {"older": checkpoint.older_has} if checkpoint.older_has else {}
    table |= {"needs": checkpoint.needs.split()} if checkpoint.needs else {}
    without = {
        option: {name: row for original, row in _rows(text) for name in _spellings(checkpoint, original)}
        for option, text in checkpoint.without.items()
    }
    table |= {"without": without} if without else {}
    table |= {"names": names}
    return table | {"also": also} if also else table


def _spellings(checkpoint: Checkpoint, name: str) -> list[str]:
    """Return a name, and its other spelling where there is one."""
    return [name, checkpoint.also(name)] if checkpoint.also else [name]


class _Kept(dict[str, Any]):
    """Tensors that stay when they are taken out.

    diffusers tells an older checkpoint of Cosmos by a name, which it looks for after it has taken out all.
    """

    def pop(self, key: str, *default: Any) -> Any:  # type: ignore[override]
        return self.get(key, *default)


def _older(checkpoint: Checkpoint, model: Any) -> dict[str, str]:
    """Return the rows of an older form of the checkpoint."""
    if not checkpoint.older:
        return {}
    names = " ".join(f"{checkpoint.older_root}{name}" for name in checkpoint.older.split())
    landed = _landed(replace(checkpoint, names=names, bare="", rows={}, extra=""), model, _Kept)
    return patterns({name.removeprefix(checkpoint.older_root): pieces for name, pieces in landed.items()})


def _landed(checkpoint: Checkpoint, model: Any, kind: type[dict[str, Any]] = dict) -> Landed:
    """Return where the names that are converted land, in the blocks that the model has."""
    every = f"{checkpoint.names} {checkpoint.bare}".split()
    names = {pattern: _expanded(pattern, checkpoint.blocks) for pattern in every}
    bare = set(_expanded(checkpoint.bare, checkpoint.blocks))
    rows = {name: count for pattern, count in checkpoint.rows.items() for name in names[pattern]}
    extra = {name: torch.zeros(1, 1) for name in _expanded(checkpoint.extra, checkpoint.blocks)}
    utils = lora_conversion_utils if checkpoint.lora else single_file_utils

    def convert(tensors: dict[str, Any]) -> dict[str, Any]:
        function = getattr(utils, checkpoint.convert)
        if checkpoint.lora:
            return function(tensors)
        return function(kind(tensors | extra), config=dict(model.config))

    if not names:
        return {}
    listed = [name for found in names.values() for name in found]
    parameters = set(model.state_dict())
    if checkpoint.lora:
        landed = record_lora(listed, rows, convert, parameters)
    else:
        landed = record(listed, rows, convert, parameters, bare)
    for pattern, found in names.items():
        if not any(name.removesuffix(".scale") in landed for name in found):
            raise ValueError(f"{checkpoint.model}: {pattern} is not converted")
    return landed


def _rows(typed: str) -> list[tuple[str, str]]:
    lines = [line.split(" -> ") for line in typed.splitlines() if line.strip()]
    return [(name.strip(), row.strip()) for name, row in lines]


def _with_shares(row: str, model: Any, blocks: int) -> str:
    """Write into a row how many of the original's rows each piece has, where these are not the same."""
    pieces = [Piece.parse(text) for text in row.split(" + ")]
    modules = carriers(model)
    shapes = [weight_shape(modules[_block_of(piece.path, blocks)]) for piece in pieces]
    rows = [(shape or (1,))[0] // piece.of for shape, piece in zip(shapes, pieces, strict=True)]
    unit = math.gcd(*rows)
    shared = (replace(piece, share=count // unit) for piece, count in zip(pieces, rows, strict=True))
    return " + ".join(map(str, shared))


def _block_of(pattern: str, blocks: int) -> str:
    return pattern.replace("*", "0").replace("$", str(blocks - 1))


def _paths(row: str) -> str:
    return " ".join(Piece.parse(text).path for text in row.split(" + "))


def build(checkpoint: Checkpoint) -> Any:
    """Return the live model on the meta device."""
    with torch.device("meta"):
        return getattr(diffusers, checkpoint.model)(**checkpoint.config)


def _expanded(names: str, blocks: int) -> list[str]:
    found = (
        [name.replace("*", str(block)) for block in range(blocks)] if "*" in name else [name]
        for name in names.split()
    )
    return [name for listed in found for name in listed]


def main() -> None:
    """Write every table."""
    FOLDER.mkdir(exist_ok=True)
    for checkpoint in CHECKPOINTS:
        table = table_of(checkpoint)
        path = FOLDER / f"{checkpoint.model}.json"
        path.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(f"{path.name}: {len(table['names'])} names")


if __name__ == "__main__":
    main()
