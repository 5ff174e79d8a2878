"""`lorry library`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorry.cli.debugging import Debug
from lorry.cli.options import LARGEST_SEED
from lorry.cli.workbench.options import AsJson


def library(
    folder: Annotated[Path, typer.Argument(help="A folder of adapters; folders in it are looked into.")],
    search: Annotated[
        str | None, typer.Option(metavar="WORDS", help="List those that all these words are said of.")
    ] = None,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="Find files with the same weights, also in another dialect.")
    ] = False,
    hashes: Annotated[
        bool,
        typer.Option("--hashes", help="Compute the hashes of A1111 and Civitai (AutoV3); reads every file."),
    ] = False,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw what each of them does to one prompt, as one picture."),
    ] = None,
    prompt: Annotated[
        str,
        typer.Option(metavar="TEXT", help="For the sheet; `{words}` in it stands for each adapter's words."),
    ] = "a red apple",
    base: Annotated[
        str, typer.Option(metavar="FOLDER|HUBID|shipped", help="The base model of the sheet.")
    ] = "shipped",
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of the sheet.")] = 0,
    again: Annotated[
        bool, typer.Option("--again", help="Read every header, also of files that are known.")
    ] = False,
    as_json: AsJson = False,
    _debug: Debug = False,
) -> None:
    """List a folder of adapters: name, base model, family, rank, words and size, from headers and files beside them."""
    import json

    from lorry.cli.console import tell
    from lorry.cli.progress import bar
    from lorry.workflows.library import find_duplicates, scan_library

    found = scan_library(folder, again=again, progress=bar)
    entries = found.entries if search is None else found.search(search)
    digests = {e.path: _hash_of(e.path) for e in bar(entries, "hashing")} if hashes else {}
    groups = find_duplicates(entries, progress=bar) if duplicates else ()
    if sheet is not None:
        from lorry.cli.contact import draw_contact_sheet

        draw_contact_sheet(entries, sheet, prompt, base, seed)
    if as_json:
        listed = [entry.as_dict() | {"hash": digests.get(entry.path)} for entry in entries]
        same = [[entry.path for entry in group] for group in groups]
        tell(
            json.dumps(
                {"folder": str(folder), "adapters": listed, "duplicates": same}, indent=2, ensure_ascii=False
            )
        )
        return
    for entry in entries:
        tell(", ".join(filter(None, (str(entry), digests.get(entry.path)))))
        for remark in entry.beside.remarks:
            tell(f"  {remark}", "yellow")
    for group in groups:
        tell("the same weights: " + ", ".join(entry.name for entry in group), "bold")
    said = f" of {len(found.entries)}" if search is not None else ""
    tell(f"{len(entries)}{said} adapters; {found.read} headers read, the others were known.", "dim")
    if sheet is not None:
        tell(sheet)


def _hash_of(path: str) -> str | None:
    """The hash as A1111 shows it; None for what cannot be read, which the list says why."""
    from lorry.errors import FileError
    from lorry.files import weights_hash

    try:
        return weights_hash(path)[:12]
    except FileError:
        return None
