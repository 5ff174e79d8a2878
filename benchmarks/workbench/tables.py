"""The tables of the page."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import timed
from benchmarks.workbench.kohya_scripts import Checkout
from benchmarks.workbench.layers import (
    NEW_RANK,
    RANK,
    WHOLE_FILE,
    layers,
    pair,
    sdxl_shapes,
    write_checkpoint,
    write_lora,
)
from benchmarks.workbench.memory import peak_of
from lorry.adapters.svd import dense_svd, factor_svd, sketch_svd
from lorry.dialects import read_adapter
from lorry.files import read_adapter_file, read_safetensors, write_safetensors
from lorry.names import DENOISER, Target
from lorry.workflows.combine import combine_files
from lorry.workflows.extract import Form, extract_files
from lorry.workflows.matching import common_name, match
from lorry.workflows.recipes import Recipe
from lorry.workflows.resize import Budget, resize_file
from lorry.workflows.sgm import SDXL

Contest = tuple[str, Callable[[], Any], Callable[[], Any], Mapping[str, Tensor]]
"""An operation, lorry's and kohya's function for it, which write `ours` and `theirs`, and what is exact."""


def svd_rows(rounds: int) -> Iterator[str]:
    """Decompose each shape of SDXL's layers from its factors, and densely; then add up those of a whole file."""
    whole = [0.0, 0.0]
    for shape in sdxl_shapes():
        delta = pair(shape, 0)
        full = delta.scale * delta.up @ delta.down.flatten(1)
        svd, dense = factor_svd(delta), dense_svd(full)
        ours = statistics.median(timed(lambda delta=delta: factor_svd(delta)) for _ in range(5 * rounds))
        theirs = statistics.median(timed(lambda full=full: dense_svd(full)) for _ in range(2))
        off = float((svd.s - dense.s[:RANK]).abs().max() / dense.s[0])
        name = " x ".join(map(str, shape))
        yield _row(f"{name}, rank {RANK}", ours, theirs, f"singular values within {off:.1e} of the largest")
        for number, seconds in enumerate((ours, theirs)):
            whole[number] += WHOLE_FILE.get(shape, 0) * seconds
    count = sum(WHOLE_FILE.values())
    yield _row(f"all {count} layers of a file", *whole, "each shape's time, as often as SDXL has it")


def script_rows(folder: Path, checkout: Checkout | None, rounds: int) -> Iterator[str]:
    """Resize, combine and extract by lorry and by kohya's scripts, from the same files."""
    ours, theirs = folder / "ours.safetensors", folder / "theirs.safetensors"
    for operation, mine, other, exact in _contests(folder, ours, theirs, checkout or Checkout(folder)):
        seconds = statistics.median(timed(mine) for _ in range(rounds))
        note = f"error {_error(_deltas(ours), exact):.4f}"
        if checkout is None:
            yield _row(operation, seconds, None, note)
            continue
        taken = timed(other)
        yield _row(operation, seconds, taken, f"{note} and {_error(_deltas(theirs), exact):.4f}")


def _contests(folder: Path, ours: Path, theirs: Path, kohya: Checkout) -> Iterator[Contest]:
    one, two = (write_lora(folder / f"{seed}.safetensors", seed) for seed in (0, 1))
    base, tuned = (
        write_checkpoint(folder / f"{name}.safetensors", 1, name == "tuned") for name in ("base", "tuned")
    )
    tensors = {key: tensor.float() for key, tensor in read_safetensors(one).tensors.items()}
    count = len(layers())
    first, second = _deltas(one), _deltas(two)
    yield (
        f"resize {count} layers, rank {RANK} to {NEW_RANK}",
        lambda: resize_file(one, ours, Budget(rank=NEW_RANK)),
        lambda: write_safetensors(theirs, kohya.resize(tensors, NEW_RANK, torch.float16)),
        first,
    )
    sources = [(one, 0.7), (two, 0.5)]
    yield (
        f"combine two adapters of {count} layers to rank {NEW_RANK}",
        lambda: combine_files(sources, ours, Recipe(rank=NEW_RANK)),
        lambda: write_safetensors(theirs, _half(kohya.merge(sources, NEW_RANK, torch.float32))),
        {name: 0.7 * full + 0.5 * second[name] for name, full in first.items()},
    )
    before, after = read_safetensors(base).tensors, read_safetensors(tuned).tensors
    yield (
        f"extract {count} layers at rank {NEW_RANK}",
        lambda: extract_files(base, tuned, ours, Form(rank=NEW_RANK)),
        lambda: kohya.extract(base, tuned, theirs, NEW_RANK),
        {
            common_name(Target(DENOISER, name), SDXL): after[key].float() - before[key].float()
            for name in layers()
            for key in [f"model.diffusion_model.{name}.weight"]
        },
    )


def sketch_rows(rounds: int) -> Iterator[str]:
    """Approximate full differences by a sketch, and by the dense decomposition that other scripts make."""
    for shape in ((1280, 1280), (10240, 1280)):
        delta, random = pair(shape, 1), torch.Generator().manual_seed(1)
        full = delta.up @ delta.down + 0.3 * torch.randn(shape, generator=random)
        sketch = sketch_svd(full, NEW_RANK, torch.Generator().manual_seed(0))
        best = dense_svd(full).cut(NEW_RANK)
        ours = statistics.median(
            timed(lambda full=full: sketch_svd(full, NEW_RANK, torch.Generator().manual_seed(0)))
            for _ in range(rounds)
        )
        theirs = timed(lambda full=full: dense_svd(full))
        errors = [float((full - (svd.u * svd.s) @ svd.v).norm() / full.norm()) for svd in (sketch, best)]
        name = " x ".join(map(str, shape))
        yield _row(f"{name} to rank {NEW_RANK}", ours, theirs, f"error {errors[0]:.5f} and {errors[1]:.5f}")


def memory_rows(blocks: int = 10) -> Iterator[str]:
    """Run the commands on files of several hundred megabytes, each in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, tuned = (
            write_checkpoint(folder / f"{name}.safetensors", blocks, name == "tuned")
            for name in ("base", "tuned")
        )
        lora, size = folder / "lora.safetensors", base.stat().st_size / 1e6
        start = peak_of(["inspect", "line", "--weights"])[1]
        for what, words in (
            ("extract --rank 32", ["extract", base, tuned, "--rank", "32", "--out", lora]),
            ("bake", ["bake", base, lora, "--out", folder / "baked.safetensors"]),
        ):
            seconds, peak = peak_of(words)
            yield f"| {what}, files of {size:.0f} MB | {_seconds(seconds)} | {peak:.0f} MB | {start:.0f} MB |"


def _half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.half() for key, tensor in tensors.items()}


def _deltas(path: Path) -> dict[str, Tensor]:
    """Return the full deltas of a file in float32, by name."""
    found = match([read_adapter(read_adapter_file(path))])
    return {layer.name: layer.present[0].delta.weight() for layer in found}


def _error(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """Return the relative error of all layers together."""
    square = sum(float((got[name] - wanted[name]).square().sum()) for name in wanted)
    return (square / sum(float(full.square().sum()) for full in wanted.values())) ** 0.5


def _row(operation: str, ours: float, theirs: float | None, note: str) -> str:
    if theirs is None:
        return f"| {operation} | {_seconds(ours)} | not measured | | {note} |"
    return f"| {operation} | {_seconds(ours)} | {_seconds(theirs)} | {theirs / ours:.3g}x | {note} |"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"
