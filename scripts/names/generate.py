"""Write the tables of original names, `src/lorry/binding/tables/*.json`.

    python -m scripts.names.generate

Each table is made by running the conversion code of the installed diffusers on tensors whose rows are numbered, with
the live model on the meta device at full width and few blocks.
"""

from __future__ import annotations

import json
import re
from typing import Any

import diffusers
import torch
from diffusers.loaders import single_file_utils
from scripts.names.checkpoints import CHECKPOINTS, Checkpoint
from scripts.names.patterns import patterns
from scripts.names.recording import record
from torch import nn

from lorry.binding.tables import FOLDER
from lorry.binding.targets import weight_shape


def table_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the table of one architecture, as its file holds it.

    Raises:
        ValueError: a name lands nowhere, or a module of the live model is not reached by any.
    """
    model = build(checkpoint)
    names = _expanded(checkpoint.names, checkpoint.blocks)
    rows = {
        name: count
        for pattern, count in checkpoint.rows.items()
        for name in _expanded(pattern, checkpoint.blocks)
    }
    extra = {name: torch.zeros(1, 1) for name in checkpoint.extra.split()}

    def convert(tensors: dict[str, Any]) -> dict[str, Any]:
        if not checkpoint.convert:
            return tensors
        return getattr(single_file_utils, checkpoint.convert)(tensors | extra, config=dict(model.config))

    landed = record(names, rows, convert, set(model.state_dict()))
    reached = {piece.path for pieces in landed.values() for piece in pieces}
    left = [
        path for path in _carriers(model) if path not in reached and not re.match(checkpoint.new or "$", path)
    ]
    if left:
        raise ValueError(f"{checkpoint.model}: no original name reaches {left}")
    source = f"diffusers.loaders.single_file_utils.{checkpoint.convert}" if checkpoint.convert else "typed"
    return {"model": checkpoint.model, "source": source, "names": patterns(landed)}


def build(checkpoint: Checkpoint) -> Any:
    """Return the live model on the meta device."""
    with torch.device("meta"):
        return getattr(diffusers, checkpoint.model)(**checkpoint.config)


def _carriers(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if path and weight_shape(module) is not None]


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
