"""Measure training steps beside PEFT, and write `docs/benchmarks-training.md`.

Three contenders on the same model and inputs: a step of `lorry train` with all that belongs to it (its cache, its
order, accelerate); a fresh LoRA of lorry in the loop of diffusers' training scripts (noise added by the scheduler,
UNet, mean squared error, backward, clipping, AdamW, the scheduler of the rate); and one of PEFT in that loop. Latents
and captions are encoded already. They compute on one thread and take their steps in turn, so that what other programs
do at the time meets all alike; the fastest step of each counts, in seconds of the processor. For the peak of memory
each runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models import build_unet
from benchmarks.training_engine import engine_step

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks-training.md"
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
CONTENDERS = ("lorry train", "lorry", "PEFT")


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
    "SD 1.5 UNet, batch 1, latents 32x32": Case("SD 1.5", batch=1, side=32, steps=2),
}


def build(model: str) -> UNet2DConditionModel:
    """Build or load a UNet in float32."""
    if model != "tiny":
        return build_unet(model, torch.float32)  # type: ignore[return-value]
    from lorry.assets import base_folder

    return UNet2DConditionModel.from_pretrained(base_folder(), subfolder="unet").float()


def put_adapter(unet: nn.Module, contender: str) -> list[nn.Parameter]:
    """Put a fresh LoRA of rank 16 on the attention; return its parameters."""
    if contender == "lorry":
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
    return (engine_step if contender == "lorry train" else script_step)(contender, unet, case)


def measure_seconds(case: Case) -> dict[str, float]:
    """Let all contenders take their steps in turn; return the fastest of each, the first not counted."""
    steps = {contender: prepared(contender, case) for contender in CONTENDERS}
    seconds: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
    for _ in range(case.steps + 1):
        for contender, step in steps.items():
            begin = time.process_time()
            step()
            seconds[contender].append(time.process_time() - begin)
    return {contender: min(found[1:]) for contender, found in seconds.items()}


def measure_peak(contender: str, case: Case) -> dict[str, float]:
    """Take two steps; return the most bytes that the process has held."""
    step = prepared(contender, case)
    for _ in range(2):
        step()
    return {contender: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def in_a_process(*words: str) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def rows(case: str) -> list[str]:
    """Measure a case; return its lines of the table."""
    seconds = in_a_process("--measure", "all", "--case", case)
    peaks: dict[str, float] = {}
    for contender in CONTENDERS:
        peaks |= in_a_process("--measure", contender, "--case", case)
    lines = []
    for c in CONTENDERS:
        cells = [case, c, f"{seconds[c]:.3g} s", f"{seconds['PEFT'] / seconds[c]:.2f}x"]
        cells += [f"{peaks[c] / 1e9:.2f} GB", f"{peaks['PEFT'] / peaks[c]:.2f}x"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Run the benchmark and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", choices=["all", *CONTENDERS], help="seconds of all, or the peak of one")
    parser.add_argument("--case", choices=list(CASES))
    parser.add_argument("--out", type=Path, default=PAGE)
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
        "command; lorry and PEFT are in the loop of diffusers' training scripts. They take their steps in turn, on one",
        "thread; the fastest step of each counts, in seconds of processor time. Memory is the peak of a process of its",
        "own, model and libraries included. Ratios are against PEFT; over 1 is for lorry.",
        "",
        f"Machine: {machine_name()}",
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
