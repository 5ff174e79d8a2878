"""The names that original checkpoints give to a model's modules, from a table for each class of model.

A table is a file of JSON in `tables/`, called as the model's class. It says of each original name which modules of the
live model its rows are, in their order:

    "double_blocks.*.img_mlp.0": "transformer_blocks.*.ff.net.0.proj"
    "double_blocks.*.img_attn.qkv": "….attn.to_q + ….attn.to_k + ….attn.to_v"              fused in the original
    "final_layer.adaLN_modulation.1": "norm_out.linear[1/2] + norm_out.linear[0/2]"         halves exchanged

A `*` is a block's number, the same on both sides, and `$` that of the last block, where it differs from the others.
`path[i/n]` is the i-th of n equal parts of a module's rows. Names that are the same in both are left out.
`scripts/names/generate.py` writes the tables from public conversion code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import final

from torch import nn

FOLDER = Path(__file__).with_name("tables")
_PART = re.compile(r"(?P<path>[^\[]+)\[(?P<part>\d+)/(?P<of>\d+)\]")
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@final
@dataclass(frozen=True, slots=True)
class Piece:
    """A module whose rows are a piece of an original module's, or one of `of` equal parts of its rows."""

    path: str
    part: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Piece:
        """Read a piece as the tables write it."""
        found = _PART.fullmatch(text)
        return cls(found["path"], int(found["part"]), int(found["of"])) if found else cls(text)

    def at_block(self, number: str) -> Piece:
        """Return the piece of one block, of a pattern's."""
        return Piece(_filled(self.path, number), self.part, self.of)

    def __str__(self) -> str:
        return self.path if self.of == 1 else f"{self.path}[{self.part}/{self.of}]"


Names = Mapping[str, tuple[Piece, ...]]
"""{original name: the pieces that its rows are, in their order}."""


def original_names(model: nn.Module, paths: Iterable[str]) -> Names:
    """Return the original names of a model's modules; none for a class of model without a table.

    A name is left out where a piece of it is not among `paths`, as the text stream of a last block.
    """
    table = next((found for cls in type(model).__mro__ if (found := _table(cls.__name__))), {})
    if not table:
        return {}
    known = set(paths)
    numbered = {path: found for path in known if (found := _NUMBER.search(path))}
    last: dict[str, int] = {}
    for path, found in numbered.items():
        start = path[: found.start()]
        last[start] = max(last.get(start, 0), int(found[0]))
    names: dict[str, tuple[Piece, ...]] = {}
    for path in known:
        for key, number in _patterns(path, numbered.get(path), last):
            for original, pieces in table.get(key, ()):
                there = tuple(piece.at_block(number) for piece in pieces)
                if all(piece.path in known for piece in there):
                    names.setdefault(_filled(original, number), there)
    return names


def _patterns(path: str, number: re.Match[str] | None, last: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the patterns of a path that a table may have, the narrowest first, each with the block's number."""
    if number is None:
        return [(path, "")]
    start, rest = path[: number.start()], path[number.end() :]
    marks = ("$", "*") if int(number[0]) == last[start] else ("*",)
    return [(path, ""), *((f"{start}{mark}{rest}", number[0]) for mark in marks)]


def _filled(pattern: str, number: str) -> str:
    return pattern.replace("*", number).replace("$", number)


@cache
def _table(name: str) -> dict[str, list[tuple[str, tuple[Piece, ...]]]]:
    """Return the table of a class of model, by the path of each name's first piece."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return {}
    by_path: dict[str, list[tuple[str, tuple[Piece, ...]]]] = {}
    for original, row in json.loads(path.read_text("utf-8"))["names"].items():
        pieces = tuple(Piece.parse(text) for text in row.split(" + "))
        by_path.setdefault(pieces[0].path, []).append((original, pieces))
    return by_path
