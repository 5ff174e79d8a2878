"""`lorry library`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorry.cli.debugging import Debug
from lorry.cli.options import LARGEST_SEED, check_needed
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
        str | None,
        typer.Option(
            metavar="TEXT",
            help="For the sheet; `{words}` in it stands for each adapter's words; `a red apple` when not given.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|HUBID|shipped", help="The base model of the sheet; shipped when not given."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=LARGEST_SEED, help="Of the sheet; 0 when not given.")
    ] = None,
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

    if sheet is None:
        check_needed("--sheet FILE", {"--prompt": prompt, "--base": base, "--seed": seed})
    found = scan_library(folder, again=again, progress=bar)
    entries = found.entries if search is None else found.search(search)
    digests = {e.path: _hash_of(e.path) for e in bar(entries, "hashing")} if hashes else {}
    groups = find_duplicates(entries, progress=bar) if duplicates else ()
    if sheet is not None:
        from lorry.cli.contact import draw_contact_sheet

        prompt = "a red apple" if prompt is None else prompt
        draw_contact_sheet(entries, sheet, prompt, base or "shipped", seed or 0)
    if as_json:
        listed, others = (
            [e.as_dict() | {"hash": digests.get(e.path)} for e in entries if e.is_adapter is wanted]
            for wanted in (True, False)
        )
        same = [[entry.path for entry in group] for group in groups]
        tell(
            json.dumps(
                {"folder": str(folder), "adapters": listed, "others": others, "duplicates": same},
                indent=2,
                ensure_ascii=False,
            )
        )
        return
    for entry in entries:
        tell(", ".join(filter(None, (str(entry), digests.get(entry.path)))))
        for remark in entry.beside.remarks:
            tell(f"  {remark}", "yellow")
    for group in groups:
        tell("the same weights: " + ", ".join(entry.name for entry in group), "bold")
    adapters = sum(entry.is_adapter for entry in entries)
    said = f" of {sum(entry.is_adapter for entry in found.entries)}" if search is not None else ""
    others = f" and {count} that lorry cannot apply" if (count := len(entries) - adapters) else ""
    tell(f"{adapters}{said} adapters{others}; {found.read} headers read, the others were known.", "dim")
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
