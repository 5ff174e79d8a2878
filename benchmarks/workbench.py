"""Measure resizing, combining and extracting beside kohya's scripts and beside dense decompositions.

The layers are those of one transformer block and one convolution of SDXL, with the spectra of trained adapters; both
sides work on the same files and threads. Where no checkout of sd-scripts is given, its rows are "not measured".
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kohya_scripts import kohya_module
from lorry.adapters.svd import dense_svd, factor_svd, sketch_svd
from lorry.algebra import LowRank
from lorry.files import read_safetensors, write_safetensors
from lorry.workflows.combine import combine_files
from lorry.workflows.matching import match
from lorry.workflows.recipes import Recipe
from lorry.workflows.resize import Budget, resize_file

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks-workbench.md"
BLOCK = "lora_unet_input_blocks_7_1_transformer_blocks_0"
LAYERS: Mapping[str, tuple[int, ...]] = {
    **{f"{BLOCK}_attn1_to_{part}": (1280, 1280) for part in ("q", "k", "v", "out_0")},
    **{f"{BLOCK}_attn2_to_{part}": (1280, 1280) for part in ("q", "out_0")},
    **{f"{BLOCK}_attn2_to_{part}": (1280, 2048) for part in ("k", "v")},
    f"{BLOCK}_ff_net_0_proj": (10240, 1280),
    f"{BLOCK}_ff_net_2": (1280, 5120),
    "lora_unet_input_blocks_7_0_in_layers_2": (1280, 640, 3, 3),
}
"""One block of SDXL: every shape that its attention and feed-forward layers have at the deepest level."""
RANK, NEW_RANK, DECAY = 64, 16, 0.93
"""Each singular value is the one before it times `DECAY`, about as trained adapters have it."""


def write_lora(path: Path, seed: int) -> Path:
    """Write an adapter of these layers in float16, with an alpha unlike the rank."""
    random = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, shape in LAYERS.items():
        ones = (1,) * len(shape[2:])
        fall = DECAY ** torch.arange(float(RANK))
        up = torch.randn(shape[0], RANK, generator=random) * fall
        tensors[f"{name}.lora_up.weight"] = up.reshape(shape[0], RANK, *ones).half()
        tensors[f"{name}.lora_down.weight"] = (0.05 * torch.randn(RANK, *shape[1:], generator=random)).half()
        tensors[f"{name}.alpha"] = torch.tensor(RANK / 2)
    return write_safetensors(path, tensors)


def timed(action: Callable[[], Any], rounds: int) -> tuple[list[float], Any]:
    """Return the seconds of each round, and the last result."""
    seconds, result = [], None
    for _ in range(rounds):
        start = time.perf_counter()
        result = action()
        seconds.append(time.perf_counter() - start)
    return seconds, result


def deltas(path: Path) -> dict[str, Tensor]:
    """Return the full deltas of a file in float32, by name."""
    from lorry.dialects import read_adapter
    from lorry.files import read_adapter_file

    layers = match([read_adapter(read_adapter_file(path))])
    return {layer.name: layer.present[0].delta.weight() for layer in layers}


def error(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """Return the relative error of all layers together."""
    square = sum(float((got[name] - wanted[name]).square().sum()) for name in wanted)
    return (square / sum(float(full.square().sum()) for full in wanted.values())) ** 0.5


def row(operation: str, ours: list[float], theirs: list[float] | None, note: str) -> str:
    """Return a row of the table."""
    mine = statistics.median(ours)
    if theirs is None:
        return f"| {operation} | {_seconds(mine)} | not measured | | {note} |"
    other = statistics.median(theirs)
    return f"| {operation} | {_seconds(mine)} | {_seconds(other)} | {other / mine:.3g}x | {note} |"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def svd_rows(rounds: int) -> Iterator[str]:
    """Decompose each shape of SDXL's layers from its factors, and densely."""
    for shape in sorted({*LAYERS.values(), (640, 640)}):
        random = torch.Generator().manual_seed(0)
        fall = DECAY ** torch.arange(float(RANK))
        up = torch.randn(shape[0], RANK, generator=random) * fall
        pair = LowRank(torch.randn(RANK, *shape[1:], generator=random), up, 0.5)
        full = pair.scale * pair.up @ pair.down.flatten(1)
        factor_svd(pair)
        ours, svd = timed(lambda pair=pair: factor_svd(pair), 3 * rounds)
        theirs, dense = timed(lambda full=full: dense_svd(full), 1)
        difference = float((svd.s - dense.s[:RANK]).abs().max() / dense.s[0])
        name = " x ".join(map(str, shape))
        yield row(
            f"{name}, rank {RANK}", ours, theirs, f"singular values within {difference:.1e} of the largest"
        )


def extract_rows(rounds: int) -> Iterator[str]:
    """Approximate full differences by a sketch, and by the dense decomposition that other scripts make."""
    for shape in ((1280, 1280), (10240, 1280)):
        random = torch.Generator().manual_seed(1)
        fall = DECAY ** torch.arange(float(RANK))
        left = torch.randn(shape[0], RANK, generator=random) * fall
        full = left @ torch.randn(RANK, shape[1], generator=random) + 0.3 * torch.randn(
            shape, generator=random
        )
        ours, svd = timed(
            lambda full=full: sketch_svd(full, NEW_RANK, torch.Generator().manual_seed(0)), rounds
        )
        theirs, dense = timed(lambda full=full: dense_svd(full).cut(NEW_RANK), 1)
        errors = [
            float((full - (found.u * found.s) @ found.v).norm() / full.norm()) for found in (svd, dense)
        ]
        yield row(
            f"{' x '.join(map(str, shape))} to rank {NEW_RANK}",
            ours,
            theirs,
            f"error {errors[0]:.5f} and {errors[1]:.5f}",
        )


def script_rows(folder: Path, checkout: Path | None, rounds: int) -> Iterator[str]:
    """Resize and combine files by lorry and by kohya's scripts."""
    one, two = write_lora(folder / "one.safetensors", 0), write_lora(folder / "two.safetensors", 1)
    out, other = folder / "ours.safetensors", folder / "theirs.safetensors"
    ours, _ = timed(lambda: resize_file(one, out, Budget(rank=NEW_RANK)), rounds)
    theirs, note = None, f"error {error(deltas(out), deltas(one)):.4f}"
    if checkout is not None:
        module = kohya_module(checkout, "resize_lora")
        tensors = {key: tensor.float() for key, tensor in read_safetensors(one).tensors.items()}

        def resize() -> Any:
            return module.resize_lora_model(
                tensors, NEW_RANK, NEW_RANK, torch.float16, "cpu", None, None, False
            )[0]

        theirs, found = timed(resize, 1)
        write_safetensors(other, found)
        note += f" and {error(deltas(other), deltas(one)):.4f}"
    yield row(f"resize {len(LAYERS)} layers, rank {RANK} to {NEW_RANK}", ours, theirs, note)

    sources = [(one, 0.7), (two, 0.5)]
    exact = {name: 0.7 * full + 0.5 * deltas(two)[name] for name, full in deltas(one).items()}
    ours, _ = timed(lambda: combine_files(sources, out, Recipe(rank=NEW_RANK)), rounds)
    theirs, note = None, f"error {error(deltas(out), exact):.4f}"
    if checkout is not None:
        module = kohya_module(checkout, "svd_merge_lora")

        def merge() -> Any:
            files, ratios = [str(path) for path, _ in sources], [factor for _, factor in sources]
            return module.merge_lora_models(files, ratios, [], NEW_RANK, NEW_RANK, None, torch.float32)[0]

        theirs, found = timed(merge, 1)
        write_safetensors(other, {key: tensor.half() for key, tensor in found.items()})
        note += f" and {error(deltas(other), exact):.4f}"
    yield row(f"combine two adapters of {len(LAYERS)} layers to rank {NEW_RANK}", ours, theirs, note)


INTRODUCTION = """# Benchmarks of the workbench

Made by `make bench` (`python -m benchmarks.workbench`), in one process, on the same layers and threads: lorry the
median of several rounds, the others once, since they take long. The ratio is theirs over lorry's. kohya's scripts are
run from a checkout named by `--sd-scripts` or `$SD_SCRIPTS`; without one they are not measured.
"""
SCRIPTS = """
## Files, beside kohya's scripts

Errors are of the result against the input (the exact weighted sum), lorry's first. kohya's SVD merge clamps the largest
hundredth of its factors' numbers, which is where its larger error is from.
"""
EXTRACTING = """
## A full difference to a low rank

What `lorry extract` does to each layer, beside the dense decomposition that other extraction scripts make. kohya's own
script is not measured: it loads whole models by its own loader.
"""


def main() -> None:
    """Run the benchmark and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    checkout = os.environ.get("SD_SCRIPTS")
    parser.add_argument(
        "--sd-scripts", type=Path, default=checkout, help="a checkout of sd-scripts ($SD_SCRIPTS)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args()
    rounds = arguments.rounds
    head = "|---|---|---|---|---|"
    with tempfile.TemporaryDirectory() as folder:
        page = [
            INTRODUCTION,
            f"Machine: {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}.",
            "",
            "## The SVD of a low-rank delta, at SDXL's shapes",
            "",
            "| shape | from its factors | dense | ratio | |",
            head,
            *svd_rows(rounds),
            SCRIPTS,
            "| operation | lorry | kohya | ratio | |",
            head,
            *script_rows(Path(folder), arguments.sd_scripts, rounds),
            EXTRACTING,
            "| layer | lorry | dense | ratio | |",
            head,
            *extract_rows(rounds),
        ]
    arguments.out.write_text("\n".join(page) + "\n")
    print("\n".join(page))
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
