"""Measure lorry beside diffusers + PEFT, and write `docs/benchmarks.md`.

Both do the same operation on the same files and the same weights, in one process, in turn; a row gives the medians,
their spread, and the ratio. Peak memory is not measured here.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers.utils import logging
from torch import Tensor

from benchmarks.contenders import Contender, Diffusers, Lorry, load
from benchmarks.models import build_unet, unet_inputs, write_adapter

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
UNET = ["unet"]


@dataclass(frozen=True)
class Row:
    """One operation: the times of both, in seconds."""

    operation: str
    ours: list[float]
    theirs: list[float]

    def markdown(self) -> str:
        ours, theirs = statistics.median(self.ours), statistics.median(self.theirs)
        return f"| {self.operation} | {_times(self.ours)} | {_times(self.theirs)} | {theirs / ours:.3g}x |"


def _times(seconds: list[float]) -> str:
    return f"{_ms(statistics.median(seconds))} ({_ms(min(seconds))} to {_ms(max(seconds))})"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that `action` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


class Journey:
    """What a user does with adapters, one operation after the other, each timed."""

    def __init__(self, contender: Contender, files: list[Path], forward: Callable[[], object]) -> None:
        self.contender, self.files, self.forward = contender, files, forward
        self.seconds: dict[str, list[float]] = {}

    def note(self, operation: str, action: Callable[[], object]) -> None:
        gc.collect()  # a full collection in the middle would cost more than most operations
        self.seconds.setdefault(operation, []).append(timed(action))

    def run(self, forwards: int) -> None:
        pipe = self.contender
        self.note("load", lambda: load(pipe, self.files[0], "a"))
        for _ in range(forwards):
            self.note("forward, one adapter", self.forward)
        self.note("load a second", lambda: load(pipe, self.files[1], "b"))
        self.note("switch to the other", lambda: pipe.set_adapters("a"))
        self.note("switch to the other", lambda: pipe.set_adapters("b"))
        self.note("change a strength", lambda: pipe.set_adapters("b", 0.5))
        self.note("two active, first time", lambda: pipe.set_adapters(["a", "b"], [0.5, 0.7]))
        self.note("change both strengths", lambda: pipe.set_adapters(["a", "b"], [0.4, 0.6]))
        for _ in range(forwards):
            self.note("forward, two adapters", self.forward)
        pipe.set_adapters("a")
        self.note("fuse one", lambda: pipe.fuse_lora(components=UNET))
        self.note("unfuse one", lambda: pipe.unfuse_lora(components=UNET))
        pipe.set_adapters(["a", "b"])
        self.note("fuse two", lambda: pipe.fuse_lora(components=UNET))
        self.note("unfuse two", lambda: pipe.unfuse_lora(components=UNET))
        self.note("delete one of two", lambda: pipe.delete_adapters("b"))
        self.note("unload", pipe.unload_lora_weights)


def changed_share(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """Return which share of all weights differ."""
    names = [name for name in before if name in after]
    changed = sum(int((before[name] != after[name]).sum()) for name in names)
    return changed / sum(before[name].numel() for name in names)


def measure(name: str, dtype: torch.dtype, size: int, rounds: int, forwards: int) -> list[str]:
    """Measure one architecture; return its section of the page."""
    unet = build_unet(name, dtype)
    inputs = unet_inputs(name, dtype, size)

    def forward() -> None:
        with torch.inference_mode():
            unet(**inputs)

    with tempfile.TemporaryDirectory() as folder:
        files = [write_adapter(unet, Path(folder, f"{i}.safetensors"), 16, dtype, seed=i) for i in range(2)]
        megabytes = files[0].stat().st_size / 1e6
        before = {key: value.clone() for key, value in unet.state_dict().items()}
        journeys = {cls: Journey(cls(unet), files, forward) for cls in (Lorry, Diffusers)}
        shares = {}
        bare: list[float] = []
        for cls, journey in list(journeys.items()) * rounds:
            bare += [timed(forward) for _ in range(forwards)]
            gc.collect()
            journey.run(forwards)
            shares[cls] = changed_share(before, dict(unet.state_dict()))
            unet.load_state_dict(before)
    ours, theirs = journeys[Lorry].seconds, journeys[Diffusers].seconds
    rows = [Row("forward, no adapter", bare, bare)]
    rows += [Row(operation, ours[operation], theirs[operation]) for operation in ours]
    parameters = sum(p.numel() for p in unet.parameters()) / 1e9
    return [
        f"## {name} UNet, {parameters:.2f} G parameters, {str(dtype).removeprefix('torch.')}",
        "",
        f"LoRA of rank 16 on every attention projection, {megabytes:.0f} MB; forward at a latent of {size} x {size}; "
        f"{rounds} rounds.",
        "",
        "| operation | lorry | diffusers + PEFT | ratio |",
        "|---|---|---|---|",
        *(row.markdown() for row in rows),
        "",
        f"Weights changed for good by two fuses and unfuses: lorry {shares[Lorry]:.2%}, "
        f"diffusers + PEFT {shares[Diffusers]:.2%}.",
        "",
    ]


def machine() -> str:
    """Describe this machine in a line."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), ""
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "peft", "transformers"))
    return f"{cpu or platform.processor()}, {torch.get_num_threads()} threads; {packages}."


def _lines(path: str) -> list[str]:
    found = Path(path)
    return found.read_text().splitlines() if found.exists() else []


def main() -> None:
    """Run the benchmark and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["SD 1.5", "SDXL"], help="one architecture only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args()
    logging.set_verbosity_error()  # PEFT calls the keys of other adapters missing
    page = [
        "# Benchmarks",
        "",
        "Made by `make bench` (`python -m benchmarks.run`): lorry and diffusers + PEFT in turn in one process, on the",
        "same files (in the page cache) and the same random weights. A time is a median, with the least and the",
        "greatest; the ratio is theirs over ours.",
        "",
        "Where lorry is the slower one: fusing writes the new weights into fresh memory beside the originals that it",
        "keeps, where PEFT adds in place; the first activation of several adapters joins their factors, which makes",
        "one copy of them; and deleting one of them gives that copy back.",
        "",
        f"Machine: {machine()}",
        "",
    ]
    plans = [("SD 1.5", torch.float32, 32, 2), ("SDXL", torch.bfloat16, 32, 2)]
    for name, dtype, size, forwards in plans:
        if arguments.only in (None, name):
            page += measure(name, dtype, size, arguments.rounds, forwards)
            print("\n".join(page))
    arguments.out.write_text("\n".join(page).rstrip() + "\n")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
