"""Measure training steps beside PEFT, and write `docs/benchmarks-training.md`.

Three contenders on the same model and inputs: a step of `lorry train` with all that belongs to it (its cache, its
order, accelerate); a fresh LoRA of lorry in the loop of diffusers' training scripts (noise added by the scheduler,
UNet, mean squared error, backward, clipping, AdamW, the scheduler of the rate); and one of PEFT in that loop. Beside
them lorry's step on a base that is held in bitsandbytes' 4 bits. Latents and captions are encoded already. They compute
on one thread and take their steps in turn, there and back, so that what other programs do at the time meets all alike;
a ratio is the middle one of those within a turn, in seconds of the processor. For the peak of memory each runs in a
process of its own, and what it took to build the model is not counted.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models import build_unet
from benchmarks.pages import page_path
from benchmarks.training_engine import engine_step
from lorry.training.quantizing import quantize

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks-training.md"
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
FOUR_BITS = "lorry, base in 4 bits"
CONTENDERS = ("lorry train", "lorry", "PEFT", FOUR_BITS)


@dataclass(frozen=True)
class Case:
    """What is trained."""

    model: str
    batch: int
    side: int
    """Of the latents."""
    steps: int


CASES = {
    "shipped tiny UNet, batch 8": Case("tiny", batch=8, side=8, steps=60),
    "SD 1.5 UNet, batch 1, latents 32x32": Case("SD 1.5", batch=1, side=32, steps=10),
}


def build(model: str) -> UNet2DConditionModel:
    """Build or load a UNet in float32."""
    if model != "tiny":
        return build_unet(model, torch.float32)  # type: ignore[return-value]
    from lorry.assets import base_folder

    return UNet2DConditionModel.from_pretrained(base_folder(), subfolder="unet").float()


def put_adapter(unet: nn.Module, contender: str) -> list[nn.Parameter]:
    """Put a fresh LoRA of rank 16 on the attention; return its parameters."""
    if contender != "PEFT":
        from lorry.training import AdapterConfig, add_adapter

        return add_adapter(unet, AdapterConfig(rank=16, alpha=16, target_modules=TARGETS))
    from peft import LoraConfig

    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=TARGETS))  # type: ignore[operator]
    return [p for p in unet.parameters() if p.requires_grad]


def script_step(contender: str, unet: UNet2DConditionModel, case: Case) -> Callable[[], Tensor]:
    """Return a step of the loop of diffusers' `train_text_to_image_lora.py`, after the encoders."""
    parameters = put_adapter(unet, contender)
    optimiser = torch.optim.AdamW(parameters, 1e-4)
    rates = get_scheduler("constant", optimiser)
    scheduler: Any = DDPMScheduler()
    config: Any = unet.config
    random = torch.Generator().manual_seed(1)
    latents = torch.randn(case.batch, config.in_channels, case.side, case.side, generator=random)
    states = torch.randn(case.batch, 77, config.cross_attention_dim, generator=random)

    def step() -> Tensor:
        noise = torch.randn(latents.shape, generator=random)
        times = torch.randint(0, 1000, (case.batch,), generator=random)
        predicted = unet(scheduler.add_noise(latents, noise, times), times, states, return_dict=False)[0]
        loss = functional.mse_loss(predicted.float(), noise.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        rates.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def prepared(contender: str, case: Case) -> Callable[[], Tensor]:
    """Build a model of its own; return a contender's step on it."""
    unet = build(case.model).train()
    if contender == FOUR_BITS:
        quantize(unet, "4bit", torch.float32)
        unet.to("cpu")
    return (engine_step if contender == "lorry train" else script_step)(contender, unet, case)


def measure_seconds(case: Case) -> dict[str, list[float]]:
    """Let all contenders take their steps in turn; return the seconds of each, the first not counted."""
    steps = {contender: prepared(contender, case) for contender in CONTENDERS}
    seconds: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
    for turn in range(case.steps + 1):
        for contender in CONTENDERS if turn % 2 else reversed(CONTENDERS):
            begin = time.process_time()
            steps[contender]()
            seconds[contender].append(time.process_time() - begin)
    return {contender: found[1:] for contender, found in seconds.items()}


def measure_peak(contender: str, case: Case) -> dict[str, list[float]]:
    """Take two steps; return the most bytes that the process has held while it took them."""
    step = prepared(contender, case)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # what it has held so far is forgotten
    for _ in range(2):
        step()
    lines = Path("/proc/self/status").read_text().splitlines()
    return {contender: [int(next(line for line in lines if "VmHWM" in line).split()[1]) * 1024]}


def in_a_process(*words: str) -> dict[str, list[float]]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def rows(case: str) -> list[str]:
    """Measure a case; return its lines of the table."""
    seconds = in_a_process("--measure", "all", "--case", case)
    peaks: dict[str, float] = {}
    for contender in CONTENDERS:
        peaks[contender] = in_a_process("--measure", contender, "--case", case)[contender][0]
    lines = []
    for c in CONTENDERS:
        speed = median(theirs / ours for theirs, ours in zip(seconds["PEFT"], seconds[c], strict=True))
        cells = [case, c, f"{median(seconds[c]):.3g} s", f"{speed:.2f}x"]
        cells += [f"{peaks[c] / 1e9:.2f} GB", f"{peaks['PEFT'] / peaks[c]:.2f}x"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Run the benchmark and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", choices=["all", *CONTENDERS], help="seconds of all, or the peak of one")
    parser.add_argument("--case", choices=list(CASES))
    parser.add_argument("--out", type=page_path, default=PAGE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.measure:
        case = CASES[arguments.case]
        found = measure_seconds(case) if arguments.measure == "all" else measure_peak(arguments.measure, case)
        print(json.dumps(found))
        return
    from benchmarks.run import machine_name

    page = [
        "# Training steps beside PEFT",
        "",
        "Made by `python -m benchmarks.training`, which `make bench` runs: a fresh LoRA of rank 16 on every attention",
        "projection, in float32, on latents and captions that are encoded already. `lorry train` is a step of that",
        "command; lorry and PEFT are in the loop of diffusers' training scripts, lorry also on a base whose linear",
        "layers bitsandbytes holds in 4 bits. They take their steps in turn, on one thread, timed by the processor:",
        "a step is the middle one of 60 (tiny) and 10 (SD 1.5), and the ratio the middle one of those within a turn.",
        "Memory is the peak of a process of its own while it trains, model and libraries included. Ratios are against",
        "PEFT; over 1 is for lorry.",
        "",
        f"Machine: {machine_name()} At the start it had a load average of {os.getloadavg()[0]:.0f}.",
        "",
        "| case | contender | a step | speed | peak | memory |",
        "|---|---|---|---|---|---|",
    ]
    for case in [arguments.case] if arguments.case else CASES:
        page += rows(case)
        print("\n".join(page[-len(CONTENDERS) :]), flush=True)
    arguments.out.write_text("\n".join(page) + "\n")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
