"""What is measured apart: many adapters, where originals are kept, families, and what a process costs at its start."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks.contenders import Diffusers, Lorry, load
from benchmarks.measuring import milliseconds, peak_bytes, timed
from benchmarks.models import attention_layers, write_adapter
from lorry.algebra import Delta, FullDelta, LohaDelta, LokrDelta, LoraDelta
from lorry.patching import Strength, Undo, get_state

MANY, THEIR_MANY = 200, 10
"""How many adapters are loaded at once; PEFT's loads take so long that it gets fewer."""


def many(model: nn.Module, folder: Path) -> list[str]:
    """Load, switch and weigh while more and more adapters are resident."""
    dtype = next(model.parameters()).dtype
    path = write_adapter(model, folder / "many.safetensors", 4, dtype, seed=0)
    page = [
        "| loaded | lorry: load | switch | strength | diffusers + PEFT: load | switch | strength |",
        "|---|---|---|---|---|---|---|",
    ]
    cells: dict[int, list[str]] = {}
    for cls, count in ((Lorry, MANY), (Diffusers, THEIR_MANY)):
        pipe = cls(model)
        for number in range(1, count + 1):
            loading = timed(lambda: load(pipe, path, f"n{number}"))  # noqa: B023
            if number in (1, 2, THEIR_MANY, 50, MANY):
                pipe.set_adapters("n1")
                switch = min(timed(lambda: pipe.set_adapters(f"n{n}")) for n in (number, 1, number))  # noqa: B023
                weigh = min(timed(lambda: pipe.set_adapters(f"n{number}", w)) for w in (0.5, 0.6, 0.7))  # noqa: B023
                cells.setdefault(number, []).extend(map(milliseconds, (loading, switch, weigh)))
        pipe.unload_lora_weights()
    for number, found in cells.items():
        page.append(f"| {number} | {' | '.join([*found, *[''] * (6 - len(found))])} |")
    return page


def originals(model: nn.Module, folder: Path) -> list[str]:
    """Fuse and unfuse with the originals in each place."""
    dtype = next(model.parameters()).dtype
    path = write_adapter(model, folder / "originals.safetensors", 16, dtype, seed=0)
    page = ["| originals | fuse | the process grows by | unfuse |", "|---|---|---|---|"]
    for where in ("device", "cpu", "disk", "none"):
        pipe = Lorry(model)
        load(pipe, path, "a")
        fuse: list[float] = []
        grown = peak_bytes(lambda: fuse.append(timed(lambda: pipe.fuse_lora(originals=where))))  # noqa: B023
        unfuse = milliseconds(timed(pipe.unfuse_lora)) if where != "none" else "refused"
        page.append(f"| `{where}` | {milliseconds(fuse[0])} | {grown / 1e6:,.0f} MB | {unfuse} |")
        pipe.unload_lora_weights(keep_fused=where == "none")
    return page


def families(model: nn.Module) -> list[str]:
    """Apply each family to the attention projections: unfused (by a copy where it has no factors) and fused.

    lycoris-lora merges the same deltas into the same layers for comparison, where it has the family.
    """
    page = [
        "| family | make active | new strength | fuse | unfuse | lycoris-lora: merge |",
        "|---|---|---|---|---|---|",
    ]
    for name, make in FAMILIES.items():
        made = {path: make(layer) for path, layer in attention_layers(model).items()}
        with Undo() as undo:
            state = get_state(model, undo)
            state.add("a", made, undo)
        cells = [
            milliseconds(timed(lambda: act(model, 1.0))),
            milliseconds(timed(lambda: act(model, 0.5))),
            milliseconds(timed(lambda: fuse(model, True))),
            milliseconds(timed(lambda: fuse(model, False))),
        ]
        with Undo() as undo:
            state.clear(undo)
        page.append(f"| {name} | {' | '.join(cells)} | {_lycoris(model, name)} |")
    return page


def act(model: nn.Module, strength: float) -> None:
    with Undo() as undo:
        get_state(model, undo).set_active({"a": Strength(strength)}, undo)


def fuse(model: nn.Module, fused: bool) -> None:
    with Undo() as undo:
        state = get_state(model, undo)
        state.fuse(undo) if fused else state.unfuse(undo)


def _noise(layer: nn.Linear, *shape: int) -> torch.Tensor:
    return (torch.randn(shape) * 0.02).to(layer.weight.dtype)


def _lora(layer: nn.Linear) -> Delta:
    return LoraDelta(_noise(layer, 16, layer.in_features), _noise(layer, layer.out_features, 16))


def _loha(layer: nn.Linear) -> Delta:
    rows, columns = layer.out_features, layer.in_features
    one, two = ((_noise(layer, rows, 8), _noise(layer, 8, columns)) for _ in range(2))
    return LohaDelta(*one, *two)


def _lokr(layer: nn.Linear) -> Delta:
    return LokrDelta(_noise(layer, 8, 8), _noise(layer, layer.out_features // 8, layer.in_features // 8))


def _full(layer: nn.Linear) -> Delta:
    return FullDelta(_noise(layer, layer.out_features, layer.in_features))


FAMILIES = {"LoRA, rank 16": _lora, "LoHa, rank 8": _loha, "LoKr, factor 8": _lokr, "full difference": _full}
LYCORIS = {"LoRA, rank 16": ("lora", 16), "LoHa, rank 8": ("loha", 8), "LoKr, factor 8": ("lokr", 100000)}


def _lycoris(model: nn.Module, name: str) -> str:
    """Merge a network of lycoris-lora with random weights, by its own means; "" where it is not installed."""
    try:
        from lycoris import LycorisNetwork, create_lycoris
    except ImportError:
        return "not installed"
    if name not in LYCORIS:
        return ""
    algorithm, rank = LYCORIS[name]
    LycorisNetwork.apply_preset(
        {"target_module": [], "target_name": [".*to_q", ".*to_k", ".*to_v", ".*to_out.0"]}
    )
    network = create_lycoris(model, 1.0, linear_dim=rank, linear_alpha=1.0, algo=algorithm, factor=8)
    network.to(next(model.parameters()).dtype)
    return milliseconds(timed(lambda: network.merge_to(1.0)))


def at_the_start(folder: Path) -> list[str]:
    """Time `import lorry`, and `lorry inspect` of a file of 1 GB of which nothing but the header is on the disk."""
    path = folder / "sparse.safetensors"
    size, layers = 1 << 30, 64
    each = size // layers // 2
    spans, start = {}, 0
    for layer in range(layers):
        for factor, shape in (("lora_A", [64, each // 128]), ("lora_B", [each // 128, 64])):
            key = f"transformer.single_transformer_blocks.{layer}.proj_mlp.{factor}.weight"
            spans[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, start + each]}
            start += each
    header = json.dumps(spans).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + start)

    def run(*command: str) -> float:
        begin = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - begin

    def best(*command: str) -> float:
        return min(run(*command) for _ in range(3))

    python = best(sys.executable, "-c", "pass")
    rows = {
        "`import lorry`": best(sys.executable, "-c", "import lorry") - python,
        "`import diffusers, peft`": best(sys.executable, "-c", "import diffusers, peft") - python,
        "`lorry inspect` of a file of 1 GB, all in": best(
            sys.executable, "-m", "lorry", "inspect", str(path)
        ),
        "of that, `python -m lorry --help`": best(sys.executable, "-m", "lorry", "--help"),
    }
    return [
        "| what | seconds |",
        "|---|---|",
        *(f"| {what} | {seconds:.3f} |" for what, seconds in rows.items()),
    ]
