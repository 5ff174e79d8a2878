"""The forward of one transformer block of SDXL, bare, with adapters, and with adapters that are disabled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from diffusers.models.attention import BasicTransformerBlock
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from benchmarks.measuring import timed
from benchmarks.models import attention_layers, filled
from lorry.algebra import LoraDelta
from lorry.patching import Strength, Undo, get_state

WIDTH, HEADS, CONTEXT = 1280, 20, 2048
COUNTS = (1, 2, 4)


@dataclass(frozen=True)
class Forward:
    """Seconds of one forward, the least of some rounds, over those of the bare block."""

    tokens: int
    rank: int
    bare: float
    ours: Mapping[str, float]
    """By what acts: "disabled", "1", "2", "4", and "slots" for a prepared block with one."""
    theirs: Mapping[str, float]

    def markdown(self) -> str:
        def over(seconds: Mapping[str, float], key: str) -> str:
            return f"{seconds[key] / self.bare:.3f}" if key in seconds else ""

        cells = [f"{over(self.ours, key)} / {over(self.theirs, key)}" for key in ("disabled", "1", "2", "4")]
        extra = (
            2 * self.rank * sum(m.in_features + m.out_features for m in attention_layers(block()).values())
        )
        whole = sum(p.numel() for p in block().parameters() if p.ndim == 2) * 2
        attention = 4 * WIDTH * (self.tokens + 77)
        share = extra / (whole + attention)
        return (
            f"| {self.tokens} | {self.rank} | {self.bare * 1e3:,.0f} ms | {' | '.join(cells)} | "
            f"{over(self.ours, 'slots')} | {1 + share:.3f} | {1 + 4 * share:.3f} |"
        )


HEAD = [
    "| tokens | rank | bare | disabled | one | two | four | one in slots | one, by operations | four |",
    "|---|---|---|---|---|---|---|---|---|---|",
]


def block() -> nn.Module:
    with torch.device("meta"):
        return BasicTransformerBlock(WIDTH, HEADS, WIDTH // HEADS, cross_attention_dim=CONTEXT)


def deltas(model: nn.Module, rank: int, seed: int) -> dict[str, LoraDelta]:
    random = torch.Generator().manual_seed(seed)
    made = {}
    for path, layer in attention_layers(model).items():
        weight = layer.weight

        def noise(*shape: int, like: Tensor = weight) -> Tensor:
            return (torch.randn(*shape, generator=random) * 0.02).to(like.device, like.dtype)

        made[path] = LoraDelta(noise(rank, layer.in_features), noise(layer.out_features, rank))
    return made


def with_lorry(model: nn.Module, rank: int, room: int | None = None) -> Callable[[int], None]:
    """Load four adapters, or one into slots; return what makes the first few of them active."""
    with Undo() as undo:
        state = get_state(model, undo)
        if room is not None:
            state.prepare(room, undo)
        for number in range(4 if room is None else 1):
            state.add(str(number), deltas(model, rank, number), undo)

    def choose(count: int) -> None:
        with Undo() as undo:
            state.set_enabled(count > 0, undo)
            state.set_active({str(n): Strength(0.5) for n in range(count)}, undo)

    return choose


def with_peft(model: nn.Module, rank: int) -> Callable[[int], None]:
    """The same with PEFT, as diffusers puts it into models."""
    config = LoraConfig(r=rank, target_modules=list(attention_layers(model)))
    for number in range(4):
        inject_adapter_in_model(config, model, str(number))
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.to(torch.bfloat16)

    def choose(count: int) -> None:
        for layer in layers:
            layer.enable_adapters(count > 0)
            layer.set_adapter([str(number) for number in range(count)] or ["0"])
            if not count:
                layer.enable_adapters(False)

    return choose


@torch.inference_mode()
def measure(tokens: int, rank: int, rounds: int, device: str) -> Forward:
    """Measure one size, everything in turn in each round."""
    models = {kind: filled(block(), torch.bfloat16, device) for kind in ("bare", "ours", "theirs", "slots")}
    choices = {
        "ours": with_lorry(models["ours"], rank),
        "theirs": with_peft(models["theirs"], rank),
        "slots": with_lorry(models["slots"], rank, rank),
    }
    choices["slots"](1)
    hidden = torch.randn(1, tokens, WIDTH, dtype=torch.bfloat16, device=device)
    context = torch.randn(1, 77, CONTEXT, dtype=torch.bfloat16, device=device)
    least: dict[tuple[str, str], float] = {}

    def run(kind: str, what: str) -> None:
        seconds = timed(lambda: models[kind](hidden, encoder_hidden_states=context))
        least[kind, what] = min(seconds, least.get((kind, what), seconds))

    for _ in range(rounds):
        run("bare", "")
        run("slots", "slots")
        for count in (0, *COUNTS):
            for kind in ("ours", "theirs"):
                choices[kind](count)
                run(kind, str(count) if count else "disabled")
    ours = {what: seconds for (kind, what), seconds in least.items() if kind in ("ours", "slots")}
    theirs = {what: seconds for (kind, what), seconds in least.items() if kind == "theirs"}
    return Forward(tokens, rank, least["bare", ""], ours, theirs)
