"""Measure training steps beside PEFT, and write `docs/benchmarks-training.md`.

Each contender runs in a process of its own, so that the peak of its memory is its own: a fresh LoRA on the same model,
the loop of diffusers' training scripts (noise, UNet, mean squared error, backward, clipping, AdamW), the same inputs.
They compute on one thread, and seconds are those of the process on it, not of the clock on the wall: what other
programs do at the time counts less. The contenders take turns, and the best of the rounds counts.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from benchmarks.models import SD15

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks-training.md"
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
CONTENDERS = ("lorry", "PEFT")
CASES = {
    "shipped tiny UNet, batch 8": {"model": "tiny", "batch": 8, "side": 8, "steps": 8},
    "SD 1.5 UNet, batch 1, latents 32x32": {"model": "sd15", "batch": 1, "side": 32, "steps": 2},
}


def build(model: str) -> UNet2DConditionModel:
    """Build or load a UNet in float32."""
    if model == "tiny":
        from lorry.assets import base_folder

        return UNet2DConditionModel.from_pretrained(base_folder(), subfolder="unet").float()
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15)
    unet = unet.to_empty(device="cpu")
    for parameter in unet.parameters():
        parameter.data.normal_(std=0.02, generator=torch.Generator().manual_seed(parameter.numel()))
    return unet


def put_adapter(unet: nn.Module, contender: str) -> list[nn.Parameter]:
    """Put a fresh LoRA of rank 16 on the attention; return its parameters."""
    if contender == "lorry":
        from lorry.training import AdapterConfig, add_adapter

        return add_adapter(unet, AdapterConfig(rank=16, alpha=16, target_modules=TARGETS))
    from peft import LoraConfig

    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=TARGETS))  # type: ignore[operator]
    return [p for p in unet.parameters() if p.requires_grad]


def measure(contender: str, case: dict[str, Any]) -> dict[str, float]:
    """Train for a few steps; return the best time of one, the peak of memory, and the last loss."""
    torch.set_num_threads(1)
    unet = build(case["model"]).train()
    start = _peak()
    parameters = put_adapter(unet, contender)
    optimiser = torch.optim.AdamW(parameters, 1e-4)
    config: Any = unet.config
    random = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    batch, side = case["batch"], case["side"]
    seconds, loss = [], torch.zeros(())
    for _ in range(case["steps"] + 1):
        sample, target = (noise(batch, config.in_channels, side, side) for _ in range(2))
        states, steps = noise(batch, 77, config.cross_attention_dim), torch.full((batch,), 500)
        begin = time.process_time()
        loss = (unet(sample, steps, states).sample - target).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        seconds.append(time.process_time() - begin)
    return {"seconds": min(seconds[1:]), "peak": _peak(), "before": start, "loss": float(loss)}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_a_process(contender: str, case: str) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training", "--contender", contender, "--case", case]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(case: str, rounds: int) -> str:
    """Measure a case by all contenders in turn; return its line of the table."""
    found: dict[str, list[dict[str, float]]] = {contender: [] for contender in CONTENDERS}
    for _ in range(rounds):
        for contender in CONTENDERS:
            found[contender].append(in_a_process(contender, case))
    seconds = [min(one["seconds"] for one in found[c]) for c in CONTENDERS]
    peaks = [min(one["peak"] for one in found[c]) / 1e9 for c in CONTENDERS]
    cells = [f"{1 / s:.3g} steps/s" for s in seconds] + [f"{seconds[1] / seconds[0]:.2f}x"]
    cells += [f"{p:.2f} GB" for p in peaks] + [f"{peaks[1] / peaks[0]:.2f}x"]
    return f"| {case} | {' | '.join(cells)} |"


def main() -> None:
    """Run the benchmark and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contender", choices=CONTENDERS)
    parser.add_argument("--case", choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(measure(arguments.contender, CASES[arguments.case])))
        return
    from benchmarks.run import machine_name

    page = [
        "# Training steps beside PEFT",
        "",
        "Made by `python -m benchmarks.training`, which `make bench` runs: a fresh LoRA of rank 16 on every attention",
        "projection, in float32, trained by the same loop on the same inputs, each contender in a process of its own",
        f"and on one thread. Steps a second of processor time, those of the fastest step of {arguments.rounds} rounds;",
        "memory is the peak of the whole process, model and libraries included. A ratio over 1 is for lorry.",
        "",
        f"Machine: {machine_name()}",
        "",
        "| case | lorry | PEFT | speed | lorry, peak | PEFT, peak | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        page.append(row(case, arguments.rounds))
        print(page[-1], flush=True)
    arguments.out.write_text("\n".join(page) + "\n")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
