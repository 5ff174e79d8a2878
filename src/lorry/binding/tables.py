"""The names that original checkpoints give to a model's modules, from a table for each class of model.

A table is a file of JSON in `tables/`, called as the model's class. It says of each original name which modules of the
live model its rows are, in their order:

    "double_blocks.*.img_mlp.0": "transformer_blocks.*.ff.net.0.proj"
    "double_blocks.*.img_attn.qkv": "….attn.to_q + ….attn.to_k + ….attn.to_v"              fused in the original
    "single_blocks.*.linear1": "….to_q + ….to_k + ….to_v + 4 ….proj_mlp"                    4 rows for 1 of the others
    "final_layer.adaLN_modulation.1": "norm_out.linear[1/2] + norm_out.linear[0/2]"         halves exchanged

A `*` is a block's number, the same on both sides, and `$` that of the last block, where it differs from the others.
`path[i/n]` is the i-th of n equal parts of a module's rows. Names that are the same in both are left out. Names under
"also" are other spellings, which are read and not written, but for models that have the module "older": these are of an
older checkpoint, whose own names they are. Those under "lacks" are another model's, by which the two are told apart;
those under "needs" are the same in both, and in every checkpoint of the model, where the others would tell too little.
Under "without" stand, by an option of the model's config, rows that hold instead where that option is off.
`scripts/names/generate.py` writes the tables from public conversion code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, final

from torch import nn

FOLDER = Path(__file__).with_name("tables")
_PIECE = re.compile(r"(?:(?P<share>\d+) )?(?P<path>[^\[]+)(?:\[(?P<part>\d+)/(?P<of>\d+)\])?")
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_FLAT_NUMBER = re.compile(r"(?<![^_])\d+(?![^_])")


@final
@dataclass(frozen=True, slots=True)
class Piece:
    """A module whose rows are a piece of an original module's, or one of `of` equal parts of its rows."""

    path: str
    part: int = 0
    of: int = 1
    share: int = 1
    """How many rows it has for each row of a piece of share 1 beside it."""

    @classmethod
    def parse(cls, text: str) -> Piece:
        """Read a piece as the tables write it."""
        found = _PIECE.fullmatch(text)
        if found is None:
            return cls(text)
        return cls(found["path"], int(found["part"] or 0), int(found["of"] or 1), int(found["share"] or 1))

    def at_block(self, number: str) -> Piece:
        """Return the piece of one block, of a pattern's."""
        return replace(self, path=_filled(self.path, number))

    def __str__(self) -> str:
        share = "" if self.share == 1 else f"{self.share} "
        return f"{share}{self.path}" + ("" if self.of == 1 else f"[{self.part}/{self.of}]")


Section = Literal["names", "also"]
Names = Mapping[str, tuple[Piece, ...]]
"""{original name: the pieces that its rows are, in their order}."""


def original_names(model: nn.Module, paths: Iterable[str], section: Section = "names") -> Names:
    """Return the original names of a model's modules; none for a class of model without a table.

    Those of the section "also" are other spellings of them. A name is left out where a piece of it is not among
    `paths`, as the text stream of a last block.
    """
    known = set(paths)
    classes = [cls.__name__ for cls in type(model).__mro__]
    table = next((found for name in classes if (found := _by_path(name, _section(name, section, known)))), {})
    if not table:
        return {}
    instead = next((found for name in classes if (found := _without(name, model))), {})
    names: dict[str, tuple[Piece, ...]] = {}
    for _, patterns in _patterns(known):
        for key, number in patterns:
            for original, pieces in table.get(key, ()):
                there = tuple(piece.at_block(number) for piece in instead.get(original, pieces))
                if all(piece.path in known for piece in there):
                    names.setdefault(_filled(original, number), there)
    return names


@cache
def exchanged_names(model: type) -> re.Pattern[str] | None:
    """Return a pattern of the names, dotted or flattened, that are one module's in the original and another one's here.

    None for a class of model that has none of them.
    """
    rows = next((found for cls in model.__mro__ if (found := _rows(cls.__name__))), ())
    paths = {piece.path for _, pieces in rows for piece in pieces}
    names = [re.escape(original) for original, _ in rows if original in paths]
    either = (name.replace(r"\.", "[._]").replace(r"\*", r"\d+") for name in names)
    return re.compile("|".join(either)) if names else None


def find_model(originals: Iterable[str]) -> tuple[str, Names] | None:
    """Return the class of model that a checkpoint is of, told from its modules' original names, and what these are.

    Names that the class's table does not have are left out: they are the same in the model, or of no module. Some
    tables have all names of another one and more: first comes a table that is there to the last name, then that which
    most is there of. Variants lack up to a third of their table; one whose names are those of another model is never
    the answer, and a model that lacks a name which is there, or needs one that is not, is not either. None where no
    table fits.
    """
    given = set(originals)
    patterns = list(_patterns(given))
    best: tuple[tuple[bool, int], str, Names] | None = None
    for model in sorted(path.stem for path in FOLDER.glob("*.json")):
        whole = _whole(model)
        if "like" in whole or not given.isdisjoint(whole.get("lacks", ())):
            continue
        if not given.issuperset(whole.get("needs", ())):
            continue
        table = dict(_rows(model))
        hits = {
            name: hit for name, keys in patterns if (hit := next((k for k in keys if k[0] in table), None))
        }
        used = len({key for key, _ in hits.values()})
        unused = len(table) - used
        fit = (unused == 0, used - unused)
        if used and used >= 2 * unused and (best is None or fit > best[0]):
            names = {
                name: tuple(piece.at_block(number) for piece in table[key])
                for name, (key, number) in hits.items()
            }
            best = (fit, model, names)
    return None if best is None else best[1:]


def find_pieces_without(model: str, name: str) -> tuple[Piece, ...] | None:
    """Return the pieces of an original module in models that lack an option of their class; None where none differs."""
    tables = _whole(model).get("without", {}).values()
    pattern, number = _NUMBER.sub("*", name, count=1), _NUMBER.search(name)
    row = next((rows[pattern] for rows in tables if pattern in rows), None)
    if row is None:
        return None
    return tuple(piece.at_block(number[0] if number else "") for piece in _parsed(row))


def find_pieces(model: str, name: str) -> tuple[Piece, ...] | None:
    """Return the pieces that an original module's rows are in a class of model; None where its table has no such name.

    Args:
        model: the class.
        name: of the module, dotted or flattened. That of a last block which differs from the others is not known.
    """
    flat = name.replace(".", "_")
    number = _FLAT_NUMBER.search(flat)
    table = _by_flat_name(model)
    if flat in table:
        return table[flat]
    if number is None:
        return None
    found = table.get(f"{flat[: number.start()]}*{flat[number.end() :]}")
    return None if found is None else tuple(piece.at_block(number[0]) for piece in found)


@cache
def _by_flat_name(model: str) -> dict[str, tuple[Piece, ...]]:
    rows = (*_rows(model, "also"), *_rows(model))
    return {original.replace(".", "_"): pieces for original, pieces in rows}


def _patterns(paths: set[str]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield each path with the patterns of it that a table may have, the narrowest first, and the block's number."""
    numbered = {path: found for path in paths if (found := _NUMBER.search(path))}
    last: dict[str, int] = {}
    for path, found in numbered.items():
        start = path[: found.start()]
        last[start] = max(last.get(start, 0), int(found[0]))
    for path in paths:
        number = numbered.get(path)
        if number is None:
            yield path, [(path, "")]
            continue
        start, rest = path[: number.start()], path[number.end() :]
        marks = ("$", "*") if int(number[0]) == last[start] else ("*",)
        yield path, [(path, ""), *((f"{start}{mark}{rest}", number[0]) for mark in marks)]


def _filled(pattern: str, number: str) -> str:
    return pattern.replace("*", number).replace("$", number)


def _section(model: str, section: Section, paths: Container[str]) -> Section:
    """Return where the table of a class has the names of one model of it, whose modules are at `paths`."""
    older = _whole(model).get("older")
    if older is None or older not in paths:
        return section
    return "also" if section == "names" else "names"


def _without(name: str, model: nn.Module) -> Names:
    """Return the rows that a class's table has for models without the options that this one lacks."""
    config = getattr(model, "config", None)
    found: dict[str, tuple[Piece, ...]] = {}
    for option, rows in _whole(name).get("without", {}).items():
        if not getattr(config, option, True):
            found |= {original: _parsed(row) for original, row in rows.items()}
    return found


@cache
def _by_path(model: str, section: Section) -> dict[str, list[tuple[str, tuple[Piece, ...]]]]:
    """Return the table of a class of model by the path of each name's first piece."""
    by_path: dict[str, list[tuple[str, tuple[Piece, ...]]]] = {}
    for original, pieces in _rows(model, section):
        by_path.setdefault(pieces[0].path, []).append((original, pieces))
    return by_path


@cache
def _whole(model: str) -> dict[str, Any]:
    """Return the table of a class of model as it is written; empty where it has none."""
    path = FOLDER / f"{model}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


@cache
def _rows(model: str, section: Section = "names") -> tuple[tuple[str, tuple[Piece, ...]], ...]:
    """Return the rows of the table of a class of model; none where it has no table."""
    names = _whole(model).get(section, {})
    return tuple((original, _parsed(row)) for original, row in names.items())


def _parsed(row: str) -> tuple[Piece, ...]:
    return tuple(Piece.parse(text) for text in row.split(" + "))
