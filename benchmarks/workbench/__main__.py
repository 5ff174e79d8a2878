"""Measure resizing, combining, extracting and baking, beside kohya's scripts and beside dense decompositions.

    SD_SCRIPTS=~/sd-scripts python -m benchmarks.workbench

The layers are those of one transformer block and one convolution of SDXL, with the spectra of trained adapters; both
sides work on the same files and threads. Where no checkout of sd-scripts is given, its rows are "not measured".
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from benchmarks.pages import page_path
from benchmarks.workbench.kohya_scripts import Checkout
from benchmarks.workbench.tables import memory_rows, script_rows, sketch_rows, svd_rows

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks-workbench.md"
INTRODUCTION = """# Benchmarks of the workbench

Made by `make bench` (`python -m benchmarks.workbench`) on {date}, in one process, on the same layers and threads: lorry
the median of several rounds, the others once or twice, since they take long. The ratio is theirs over lorry's. kohya's
scripts are run from a checkout named by `--sd-scripts` or `$SD_SCRIPTS`; without one they are not measured.

Machine: {machine}, {threads} threads, torch {torch}.
"""
SVD = """
## The SVD of a low-rank delta, at SDXL's shapes

| shape | from its factors | dense | ratio | |
|---|---|---|---|---|"""
SCRIPTS = """
## Files, beside kohya's scripts

Errors are of the result against the input (the exact weighted sum, the whole change), lorry's first. kohya's merge and
extraction clamp the largest hundredth of their factors' numbers, which is where their larger errors are from. Its
script for extraction is given the weights by a small loader in place of its own, which wants a whole SDXL.

| operation | lorry | kohya | ratio | |
|---|---|---|---|---|"""
SKETCHES = """
## A full difference to a low rank

What `lorry extract` does to each layer, beside a dense decomposition.

| layer | lorry | dense | ratio | |
|---|---|---|---|---|"""
MEMORY = """
## Memory

Each command in a process of its own, on ten transformer blocks and one convolution of SDXL, read one tensor at a time.
Beside it the peak of `lorry inspect line --weights`, which is that of torch and the program.

| command | time | peak | the program itself |
|---|---|---|---|"""


def main() -> None:
    """Run the benchmark and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = os.environ.get("SD_SCRIPTS")
    parser.add_argument(
        "--sd-scripts", type=Path, default=folder, help="a checkout of sd-scripts ($SD_SCRIPTS)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=page_path, default=PAGE)
    arguments = parser.parse_args()
    checkout = None if arguments.sd_scripts is None else Checkout(arguments.sd_scripts)
    introduction = INTRODUCTION.format(
        date=datetime.datetime.now(datetime.UTC).date(),
        machine=platform.machine(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    with tempfile.TemporaryDirectory() as temporary:
        lines = _page(introduction, Path(temporary), checkout, arguments.rounds)
        page = "".join(f"{line}\n" for line in _printed(lines))
    arguments.out.write_text(page)
    print(f"written to {arguments.out}")


def _page(introduction: str, folder: Path, checkout: Checkout | None, rounds: int) -> Iterator[str]:
    yield introduction.rstrip()
    yield SVD
    yield from svd_rows(rounds)
    yield SCRIPTS
    yield from script_rows(folder, checkout, rounds)
    yield SKETCHES
    yield from sketch_rows(rounds)
    yield MEMORY
    yield from memory_rows()


def _printed(lines: Iterable[str]) -> Iterator[str]:
    """Print each line as soon as it is known: the whole takes minutes."""
    for line in lines:
        print(line, flush=True)
        yield line


if __name__ == "__main__":
    main()
