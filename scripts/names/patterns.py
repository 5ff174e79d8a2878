"""From the names of a few blocks to patterns for any number of blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lorry.binding.tables import Piece

_BLOCK = re.compile(r"(?:(?<=\.)|^)(block)?(\d+)(?=\.|$)")

Row = tuple[Piece, ...]


def patterns(landed: Mapping[str, Row]) -> dict[str, str]:
    """Return names with `*` for a block's number, or `$` for the last block's where that one differs.

    Only the first number of a name is a block's, and only where there are several, which stand first in every piece.
    """
    blocks: dict[str, dict[int, Row]] = {}
    table: dict[str, str] = {}
    for name, pieces in landed.items():
        found = _BLOCK.search(name)
        number = None if found is None else int(found[2])
        if number is None or any(_first(piece.path) != number for piece in pieces):
            table[name] = _text(pieces)
        else:
            blocks.setdefault(_with(name, "*"), {})[number] = tuple(_wild(piece) for piece in pieces)
    for name, by_number in blocks.items():
        last = max(by_number)
        if len(by_number) == 1:
            table[name.replace("*", str(last))] = _text(by_number[last]).replace("*", str(last))
            continue
        others = {row for number, row in by_number.items() if number != last}
        if sorted(by_number) != list(range(len(by_number))) or len(others) != 1:
            raise ValueError(f"{name}: the blocks {sorted(by_number)} follow no rule")
        row = others.pop()
        table[name] = _text(row)
        if by_number[last] != row:
            table[name.replace("*", "$")] = _text(by_number[last]).replace("*", "$")
    return {name: row for name, row in sorted(table.items()) if row != name}


def _text(row: Row) -> str:
    return " + ".join(map(str, row))


def _first(path: str) -> int | None:
    found = _BLOCK.search(path)
    return None if found is None else int(found[2])


def _with(path: str, mark: str) -> str:
    return _BLOCK.sub(lambda found: f"{found[1] or ''}{mark}", path, count=1)


def _wild(piece: Piece) -> Piece:
    return Piece(_with(piece.path, "*"), piece.part, piece.of)
