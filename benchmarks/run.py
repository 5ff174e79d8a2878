"""Measure lorry beside diffusers + PEFT, and write `docs/benchmarks.md` with its plots.

Both do the same operation on the same files and the same weights, in one process, in turn; a row gives the medians,
their spread, the ratio, and the floor: the seconds that the row's bytes, sums and pointers take on this machine.
"""

from __future__ import annotations

import argparse
import gc
import platform
import re
import tempfile
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers.utils import logging
from torch import nn

from benchmarks import forward, operations, others
from benchmarks.measuring import Machine
from benchmarks.models import build_flux, build_unet
from benchmarks.pages import page_path
from benchmarks.plots import plot_rows

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
MODELS: dict[str, tuple[Callable[[str], nn.Module], int]] = {
    "SD 1.5 UNet": (lambda device: build_unet("SD 1.5", torch.float32, device), 3),
    "SDXL UNet": (lambda device: build_unet("SDXL", torch.bfloat16, device), 3),
    "Flux-dev, 2 double and 2 single blocks": (lambda device: build_flux(2, 2, torch.bfloat16, device), 2),
}
"""How each model is built, and in how many rounds it is measured."""
SIZES = [
    (256, 16),
    (256, 64),
    (256, 128),
    (1024, 16),
    (1024, 64),
    (1024, 128),
    (4096, 16),
    (4096, 64),
    (4096, 128),
]
INTRODUCTION = """\
# Benchmarks

Made by `make bench` (`python -m benchmarks.run`) on {day}: lorry and diffusers + PEFT in turn in one process, on the
same files (in the page cache) and the same random weights. A time is a median, with the least and the greatest; the
ratio is theirs over ours; the floor is what the bytes, the sums and the pointers of the row take on this machine when
nothing else is done: pointers to the factors into the buffers of each layer, and of weights to their memory. A thread
of lorry's that still gives memory back is waited for between two operations.
[performance.md](performance.md) says what was changed for which row, and what stands in the way of more.

Machine: {machine}
It copies {copied:.1f} GB/s, {fresh:.1f} GB/s into memory that is new to the process, and multiplies at {flops:.0f}
Gflop/s where it fuses. Gigabytes of new memory may come slower: a virtual machine has to get them from its host. How
fast they came is measured by a copy of each model, and makes the floor of the first "fuse one, new memory"; the rounds
after it may find memory that was in use a moment before.

GPU: {gpu}
"""


def machine_name() -> str:
    """Describe this machine in a line."""
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "peft", "transformers"))
    return f"{cpu or platform.processor()}, {torch.get_num_threads()} threads; {packages}."


def operations_page(names: list[str], device: str, machine: Machine, folder: Path, plots: Path) -> list[str]:
    """Measure the operations on each model."""
    page = []
    for name in names:
        build, rounds = MODELS[name]
        model = build(device)
        section, rows = operations.measure(name, model, folder, rounds, machine)
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        plot_rows(name, rows, plots / f"benchmarks-{slug}.svg")
        page += [*section, f"![{name}](benchmarks-{slug}.svg)", ""]
        print("\n".join(section), flush=True)
        del model
        gc.collect()
    return page


def forward_page(device: str) -> list[str]:
    """Measure the forward of a block."""
    rows = []
    for tokens, rank in SIZES:
        rows.append(forward.measure(tokens, rank, 3 if tokens > 2000 else 5, device).markdown())
        print(rows[-1], flush=True)
    return [
        "## Forward of one transformer block of SDXL, bfloat16",
        "",
        "Adapters on its eight attention projections. Each cell is the time over that of the bare block, lorry / PEFT,",
        "by the least of some rounds; the last two columns are the operations of the block with one and with four",
        "adapters, over those of the bare block.",
        "",
        *forward.HEAD,
        *rows,
        "",
    ]


def other_pages(folder: Path) -> list[str]:
    """Measure the rest, on the CPU."""
    model = build_unet("SD 1.5", torch.bfloat16)
    pages = {
        "Many adapters, SD 1.5 UNet, rank 4": others.many(model, folder),
        "Where originals are kept, SD 1.5 UNet, bfloat16": others.originals(model, folder),
        "Families, SD 1.5 UNet, bfloat16": others.families(build_unet("SD 1.5", torch.bfloat16)),
        "At the start": others.at_the_start(folder),
    }
    return [line for title, lines in pages.items() for line in (f"## {title}", "", *lines, "")]


def main() -> None:
    """Run the benchmark and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", choices=[*MODELS, "forward", "others"], action="append", help="some parts only"
    )
    parser.add_argument("--out", type=page_path, default=PAGE)
    arguments = parser.parse_args()
    logging.set_verbosity_error()  # PEFT calls the keys of other adapters missing
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    chosen = arguments.only or [*MODELS, "forward", "others"]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine = Machine.measured()
    page = [
        INTRODUCTION.format(
            day=date.today().isoformat(),
            machine=machine_name(),
            copied=machine.copied / 1e9,
            fresh=machine.copied_fresh / 1e9,
            flops=machine.flops / 1e9,
            gpu=f"{gpu}; see the sections that name it."
            if gpu
            else "none in this machine, so nothing was measured on one.",
        )
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        page += operations_page(
            [name for name in MODELS if name in chosen], "cpu", machine, folder, arguments.out.parent
        )
        if "forward" in chosen:
            page += forward_page("cpu")
        if "others" in chosen:
            page += other_pages(folder)
        if gpu:
            page += ["# On the GPU", "", *forward_page("cuda")]
    arguments.out.write_text("\n".join(page).rstrip() + "\n")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
