"""What is done with adapters, one operation after the other, through both programs on one model."""

from __future__ import annotations

import gc
import statistics
from collections import deque
from collections.abc import Callable
from itertools import repeat
from operator import delitem, setitem
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.contenders import Contender, Diffusers, Lorry, load
from benchmarks.measuring import (
    HEAD,
    Machine,
    Row,
    peak_bytes,
    timed,
    wait_for_threads,
)
from benchmarks.models import attention_layers, write_adapter
from lorry.files._layout import _read_once
from lorry.memory import release_spare

UNET = ["unet"]
THEIR_ROUNDS = 2
"""diffusers + PEFT take minutes for a round of SDXL."""


class Journey:
    """Every operation, timed; run several times, each operation's seconds are gathered."""

    def __init__(self, contender: Contender, files: list[Path]) -> None:
        self.contender, self.files = contender, files
        self.seconds: dict[str, list[float]] = {}
        self.peaks: dict[str, int] = {}

    def note(self, operation: str, action: Callable[[], object]) -> None:
        wait_for_threads()
        self.seconds.setdefault(operation, []).append(timed(action))

    def run(self) -> None:
        pipe, files = self.contender, self.files
        forget_layouts()
        release_spare()
        self.note("load, new layout and memory", lambda: load(pipe, files[0], "a"))
        self.note("unload one", pipe.unload_lora_weights)
        release_spare()
        self.note("load, new memory", lambda: load(pipe, files[0], "a"))
        self.note("unload one", pipe.unload_lora_weights)
        for _ in range(3):
            self.note("load", lambda: load(pipe, files[0], "a"))
            self.note("unload one", pipe.unload_lora_weights)
        load(pipe, files[0], "a")
        self.note("load a second", lambda: load(pipe, files[1], "b"))
        for name in "abab":
            self.note("switch to the other", lambda: pipe.set_adapters(name))  # noqa: B023
        for strength in (0.5, 0.6, 0.7):
            self.note("change a strength", lambda: pipe.set_adapters("b", strength))  # noqa: B023
        self.note("two active, first time", lambda: pipe.set_adapters(["a", "b"], [0.5, 0.7]))
        for strength in (0.4, 0.6):
            self.note("change both strengths", lambda: pipe.set_adapters(["a", "b"], [strength, 0.6]))  # noqa: B023
        pipe.set_adapters("a")
        self.note("fuse one, new memory", lambda: pipe.fuse_lora(components=UNET))
        self.note("unfuse one", lambda: pipe.unfuse_lora(components=UNET))
        self.note("fuse one, again", lambda: pipe.fuse_lora(components=UNET))
        self.note("swap the fused one for another", self.swap)
        self.note("unfuse one", lambda: pipe.unfuse_lora(components=UNET))
        pipe.set_adapters(["a", "b"])
        self.note("fuse two", lambda: pipe.fuse_lora(components=UNET))
        self.note("unfuse two", lambda: pipe.unfuse_lora(components=UNET))
        pipe.set_adapters(["a", "b"], [0.5, 0.7])
        self.note("fuse two of unlike strength", lambda: pipe.fuse_lora(components=UNET))
        self.note("unfuse two", lambda: pipe.unfuse_lora(components=UNET))
        load(pipe, files[2], "c")
        load(pipe, files[3], "d")
        pipe.set_adapters([*"abcd"])
        self.note("fuse four", lambda: pipe.fuse_lora(components=UNET))
        self.note("unfuse four", lambda: pipe.unfuse_lora(components=UNET))
        self.note("delete two of four", lambda: pipe.delete_adapters(["c", "d"]))
        pipe.set_adapters(["a", "b"], [0.5, 0.7])
        self.note("delete one of two", lambda: pipe.delete_adapters("b"))
        self.note("unload", pipe.unload_lora_weights)

    def swap(self) -> None:
        self.contender.unfuse_lora(components=UNET)
        self.contender.set_adapters("b")
        self.contender.fuse_lora(components=UNET)

    def measure_peaks(self) -> None:
        """Note by how much the process grows at most in each operation."""
        pipe, files = self.contender, self.files
        operations: dict[str, Callable[[], object]] = {
            "load": lambda: load(pipe, files[0], "a"),
            "load a second": lambda: load(pipe, files[1], "b"),
            "switch to the other": lambda: pipe.set_adapters("a"),
            "change a strength": lambda: pipe.set_adapters("a", 0.5),
            "two active": lambda: pipe.set_adapters(["a", "b"], [0.5, 0.7]),
            "fuse two": lambda: pipe.fuse_lora(components=UNET),
            "unfuse two": lambda: pipe.unfuse_lora(components=UNET),
            "delete one of two": lambda: pipe.delete_adapters("b"),
            "unload": pipe.unload_lora_weights,
        }
        for name, action in operations.items():
            release_spare()
            self.peaks[name] = peak_bytes(action)


def forget_layouts() -> None:
    """Let lorry know no more of files and models than at its start."""
    _read_once.cache_clear()
    gc.collect()


def changed_share(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """Return which share of all weights differ."""
    names = [name for name in before if name in after]
    changed = sum(int((before[name] != after[name]).sum()) for name in names)
    return changed / sum(before[name].numel() for name in names)


def fuse_errors(model: nn.Module, files: list[Path]) -> str:
    """Return a sentence on the error of one fused layer against float64, beside the least that the dtype allows."""
    from safetensors.torch import load_file

    tensors = load_file(files[0])
    path = next(key for key in tensors if key.endswith("to_q.lora_A.weight")).removesuffix(".lora_A.weight")
    layer = path.removeprefix("unet.")
    down, up = tensors[f"{path}.lora_A.weight"].double(), tensors[f"{path}.lora_B.weight"].double()
    before = model.get_submodule(layer).get_parameter("weight").detach().clone()
    exact = before.double() + up @ down
    errors = []
    for cls in (Lorry, Diffusers):
        pipe = cls(model)
        load(pipe, files[0], "a")
        pipe.fuse_lora(components=UNET)
        module = model.get_submodule(layer)
        weight = getattr(module, "base_layer", module).weight
        errors.append(float((weight.double().cpu() - exact).square().mean().sqrt()))
        pipe.unfuse_lora(components=UNET)
        pipe.unload_lora_weights()
        model.get_submodule(layer).get_parameter("weight").data.copy_(before)
    least = float((exact.to(before.dtype).double() - exact).square().mean().sqrt())
    return (
        f"Error of a fused layer against float64 (root mean square): lorry {errors[0]:.4g}, diffusers + PEFT "
        f"{errors[1]:.4g}; the exact sum rounded once to {str(before.dtype).removeprefix('torch.')} has {least:.4g}, "
        "which is the least that can be had."
    )


def measure(
    name: str, model: nn.Module, folder: Path, rounds: int, machine: Machine
) -> tuple[list[str], list[Row]]:
    """Measure all operations on one model; return its section of the page, and its rows for the plot."""
    dtype = next(model.parameters()).dtype
    files = [write_adapter(model, folder / f"{i}.safetensors", 16, dtype, seed=i) for i in range(4)]
    before = dict(model.state_dict())
    given = sum(value.nbytes for value in before.values()) / timed(
        lambda: before.update({key: value.clone() for key, value in before.items()})
    )
    journeys = {cls: Journey(cls(model), files) for cls in (Lorry, Diffusers)}
    shares = {}
    for number in range(rounds):
        for cls, journey in journeys.items():
            if cls is Diffusers and number >= THEIR_ROUNDS:
                continue
            journey.run()
            if number == min(rounds, THEIR_ROUNDS) - 1:
                shares[cls] = changed_share(before, dict(model.state_dict()))
            model.load_state_dict(before)
    for journey in journeys.values():
        journey.measure_peaks()
        model.load_state_dict(before)
    ours, theirs = journeys[Lorry], journeys[Diffusers]
    floors = _floors(model, files[0].stat().st_size, machine, given)
    rows = [Row(o, ours.seconds[o], theirs.seconds[o], floors.get(o)) for o in ours.seconds]
    count = sum(p.numel() for p in model.parameters()) / 1e9
    size = files[0].stat().st_size
    page = [
        f"## {name}: {count:.2f} G parameters, {str(dtype).removeprefix('torch.')}",
        "",
        f"LoRA of rank 16 on every attention projection, {size / 1e6:.0f} MB; {rounds} rounds, of diffusers + PEFT "
        f"{min(rounds, THEIR_ROUNDS)}. The model was copied into new memory at {given / 1e9:.2g} GB/s.",
        "",
        *HEAD,
        *(row.markdown() for row in rows),
        "",
        f"Weights changed for good by all fuses and unfuses: lorry {shares[Lorry]:.2%}, diffusers + PEFT "
        f"{shares[Diffusers]:.2%}. {fuse_errors(model, files)}",
        "",
        "By how much the process grows at most (pages of the mapped file included), in MB:",
        "",
        "| operation | lorry | diffusers + PEFT |",
        "|---|---|---|",
        *(f"| {o} | {peak / 1e6:,.0f} | {theirs.peaks[o] / 1e6:,.0f} |" for o, peak in ours.peaks.items()),
        "",
    ]
    model.load_state_dict(before)
    return page, rows


def _floors(model: nn.Module, file_bytes: int, machine: Machine, given: float) -> dict[str, float]:
    """Return the seconds that bytes, sums and pointers take on this machine if nothing else is done.

    `given`: the bytes a second at which the model was copied into new memory.
    """
    touched = [module.weight for module in attention_layers(model).values()]
    nbytes, numbers = sum(w.nbytes for w in touched), sum(w.numel() for w in touched)
    product = 2 * 16 * numbers / machine.flops
    buffers, weights = _seconds_of_pointers(model)
    return {
        "load, new layout and memory": file_bytes / machine.copied_fresh,
        "load, new memory": file_bytes / machine.copied_fresh,
        "load a second": file_bytes / machine.copied_fresh,
        "two active, first time": 2 * file_bytes / machine.copied_fresh,
        "load": file_bytes / machine.copied,
        "switch to the other": buffers,
        "delete two of four": 2 * file_bytes / machine.copied + buffers,
        "delete one of two": buffers,
        "unload": buffers,
        **dict.fromkeys(("unfuse one", "unfuse two", "unfuse four"), weights + buffers),
        "fuse one, new memory": nbytes / given - nbytes / machine.copied + product,
        "fuse one, again": product,
        "fuse two": product,
        "fuse four": product,
    }


def _seconds_of_pointers(model: nn.Module) -> tuple[float, float]:
    """Return what it takes to put three tensors into each layer's buffers, and to give each weight other memory.

    Nothing else is done or asked. As in the rows, nothing of it is in the caches.
    """
    layers = [*attention_layers(model).values()]
    held = [layer._buffers for layer in layers]
    columns = {f"floor_{part}": [torch.zeros(1) for _ in layers] for part in ("down", "up", "scale")}
    weights = [layer.weight for layer in layers]
    memory = [weight.detach().view(weight.shape) for weight in weights]

    def put() -> None:
        for name, column in columns.items():
            deque(map(setitem, held, repeat(name), column), maxlen=0)

    def give() -> None:
        deque(map(setattr, weights, repeat("data"), memory), maxlen=0)

    put()
    buffers = statistics.median(timed(put) for _ in range(5))
    for name in columns:
        deque(map(delitem, held, repeat(name)), maxlen=0)
    return buffers, statistics.median(timed(give) for _ in range(5))
