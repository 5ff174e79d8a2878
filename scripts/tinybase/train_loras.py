"""Trains the demo adapters, one process each, and writes each in the spelling of another trainer.

A style adapter sees three quarters of the concepts in its look; the rest stay unseen, so that a picture of one shows
style and not memory. The subject adapter learns made-up words, with base pictures mixed in to keep the rest as it was.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from torch import Tensor, nn

from common import cosine_after
from concepts import ALL, HELD_OUT_OF_STYLES
from dataset import SUBJECT_CONCEPTS, Sample, samples
from drawing import Look
from models import load
from train_base import Velocity, encode, text_states, token_ids, with_empty

Dialect = Literal["peft", "kohya", "diffusers_old"]

ATTENTION: Final = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
CONVS: Final = [
    "conv1",
    "conv2",
    "conv_shortcut",
    "conv_in",
    "conv_out",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
]
TEXT: Final = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


@dataclass(frozen=True)
class Spec:
    """One adapter: what it learns, which layers it changes, how it is written."""

    name: str
    look: Look
    dialect: Dialect
    rank: int
    alpha: float
    conv_rank: int = 0
    conv_alpha: float = 0.0
    text_rank: int = 0
    text_alpha: float = 0.0
    title: str = ""
    trigger: str = ""
    module: str = "networks.lora"
    args: Mapping[str, str] = field(default_factory=dict)


SPECS: Final = (
    Spec(
        "line",
        "line",
        "peft",
        8,
        8,
        conv_rank=4,
        conv_alpha=4,
        text_rank=4,
        text_alpha=4,
        title="Line drawing",
    ),
    Spec("pixel", "pixel", "kohya", 16, 8, text_rank=8, text_alpha=4, title="Pixel art"),
    Spec(
        "neon",
        "neon",
        "kohya",
        8,
        4,
        conv_rank=8,
        conv_alpha=6,
        title="Neon tubes",
        module="lycoris.kohya",
        args={"algo": "locon", "conv_dim": "8", "conv_alpha": "6.0"},
    ),
    Spec(
        "zuzu",
        "base",
        "diffusers_old",
        4,
        4,
        text_rank=4,
        text_alpha=4,
        title="Zuzu and Krok",
        trigger="zuzu, krok",
    ),
)


def chosen_samples(spec: Spec, count: int) -> list[Sample]:
    """The pictures an adapter is shown."""
    if spec.trigger:
        half = count // 2
        return samples(half, 301, ("base",), SUBJECT_CONCEPTS) + samples(count - half, 302, ("base",))
    shown = [c for c in ALL if c.noun not in HELD_OUT_OF_STYLES]
    return samples(count, 300, (spec.look,), shown)


def _config(spec: Spec, model: nn.Module) -> LoraConfig:
    """Ranks by kind of layer: 3x3 convolutions (and the first and last) have their own."""
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    linear = [n for n in names if any(n.endswith("." + t) for t in ATTENTION)]
    convs = [n for n in names if n not in linear and any(n == t or n.endswith("." + t) for t in CONVS)]
    config = LoraConfig(
        r=spec.rank, lora_alpha=spec.alpha, target_modules=linear + (convs if spec.conv_rank else [])
    )
    if spec.conv_rank:
        config.rank_pattern = {f"^{n.replace('.', chr(92) + '.')}$": spec.conv_rank for n in convs}
        config.alpha_pattern = {f"^{n.replace('.', chr(92) + '.')}$": spec.conv_alpha for n in convs}
    return config


def _factors(model: nn.Module) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Layer path to (down, up, alpha)."""
    found: dict[str, tuple[Tensor, Tensor, float]] = {}
    for name, layer in model.named_modules():
        if "default" in getattr(layer, "lora_A", {}):
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            found[name] = (down, up, float(layer.lora_alpha["default"]))
    return found


def _keys(dialect: Dialect, component: str, path: str) -> tuple[str, str, str]:
    """The keys of down, up and alpha (empty where the dialect has none)."""
    inner = f"text_model.{path}" if component == "text_encoder" else path
    match dialect:
        case "peft":
            base = f"{component}.{inner}"
            return f"{base}.lora_A.weight", f"{base}.lora_B.weight", ""
        case "diffusers_old":
            base = f"{component}.{inner}." + ("lora" if component == "unet" else "lora_linear_layer")
            return f"{base}.down.weight", f"{base}.up.weight", ""
        case "kohya":
            base = ("lora_unet_" if component == "unet" else "lora_te_") + inner.replace(".", "_")
            return f"{base}.lora_down.weight", f"{base}.lora_up.weight", f"{base}.alpha"


def state_dict(spec: Spec, components: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The adapter in its dialect, fp16."""
    out: dict[str, Tensor] = {}
    for component, model in components.items():
        for path, (down, up, alpha) in _factors(model).items():
            down_key, up_key, alpha_key = _keys(spec.dialect, component, path)
            if not alpha_key and alpha != down.shape[0]:
                raise ValueError(
                    f"{path}: this dialect has no place for alpha {alpha} at rank {down.shape[0]}"
                )
            out[down_key], out[up_key] = down.detach().half().contiguous(), up.detach().half().contiguous()
            if alpha_key:
                out[alpha_key] = torch.tensor(alpha, dtype=torch.float16)
    return out


def _peft_metadata(components: Mapping[str, nn.Module]) -> str:
    values: dict[str, object] = {}
    for component, model in components.items():
        config = model.peft_config["default"]
        values[f"{component}.r"], values[f"{component}.lora_alpha"] = config.r, config.lora_alpha
        values[f"{component}.rank_pattern"] = config.rank_pattern
        values[f"{component}.alpha_pattern"] = config.alpha_pattern
        values[f"{component}.target_modules"] = (
            TEXT if component == "text_encoder" else sorted(_factors(model))
        )
    return json.dumps(values, sort_keys=True)


def metadata(
    spec: Spec, components: Mapping[str, nn.Module], steps: int, batch: int, count: int
) -> dict[str, str]:
    """What a trainer of this dialect writes, as far as it is true of this file."""
    out = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "lorry-tinybase/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": spec.title,
        "modelspec.prediction_type": "v",
        "modelspec.resolution": "64x64",
        "modelspec.license": "see NOTICE",
    }
    if spec.trigger:
        out["modelspec.trigger_phrase"] = spec.trigger
    if spec.dialect == "peft":
        out["lora_adapter_metadata"] = _peft_metadata(components)
    if spec.dialect == "kohya":
        out |= {
            "ss_network_module": spec.module,
            "ss_network_dim": str(spec.rank),
            "ss_network_alpha": str(float(spec.alpha)),
            "ss_network_args": json.dumps(dict(spec.args)),
            "ss_base_model_version": "lorry_tinybase",
            "ss_sd_model_name": "tinybase",
            "ss_output_name": spec.name,
            "ss_steps": str(steps),
            "ss_num_train_images": str(count),
            "ss_total_batch_size": str(batch),
            "ss_resolution": "(64, 64)",
        }
    return out


def train(
    spec: Spec, work: Path, model: Path, out: Path, seconds: float, batch: int, count: int, rate: float
) -> None:
    """Trains one adapter in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(7)
    pipe = load(model)
    unet, text = pipe.unet.to(memory_format=torch.channels_last), pipe.text_encoder
    chosen = chosen_samples(spec, count)
    latents, ids = encode(pipe.vae, work, chosen), token_ids(pipe.tokenizer, [s.caption for s in chosen])
    empty = token_ids(pipe.tokenizer, [""])[0]
    for part in (unet, text, pipe.vae):
        part.requires_grad_(False)
    components: dict[str, nn.Module] = {"unet": inject_adapter_in_model(_config(spec, unet), unet)}
    if spec.text_rank:
        config = LoraConfig(r=spec.text_rank, lora_alpha=spec.text_alpha, target_modules=TEXT)
        components["text_encoder"] = inject_adapter_in_model(config, text)
    params = [p for c in components.values() for p in c.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(params, rate, betas=(0.9, 0.98), weight_decay=0.0)
    velocity, rng = Velocity(), random.Random(1)
    begin, step, losses = time.monotonic(), 0, []
    while (progress := (time.monotonic() - begin) / seconds) < 1:
        adam.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 30) * cosine_after(progress, 0.3)
        pick = torch.randint(0, count, (batch,))
        noisy, steps, target = velocity.noised(latents[pick])
        states = text_states(text, with_empty(ids[pick], empty, rng))
        loss = F.mse_loss(unet(noisy, steps, states).sample, target)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        step += 1
        losses.append(loss.item())
        if step % 50 == 0:
            print(
                f"{spec.name} step {step} {time.monotonic() - begin:.0f}s loss {sum(losses) / 50:.4f}",
                flush=True,
            )
            losses = []
    tensors = state_dict(spec, components)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{spec.name}.safetensors"
    save_file(tensors, path, metadata=metadata(spec, components, step, batch, count))
    path.chmod(0o644)
    print(f"{path.name}: {len(tensors)} tensors, {path.stat().st_size} bytes, {step} steps", flush=True)


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--work", type=Path, required=True)
    args.add_argument("--model", type=Path, required=True)
    args.add_argument("--out", type=Path, required=True)
    args.add_argument("--only", default="", help="names, separated by commas; all of them by default")
    args.add_argument("--seconds", type=float, default=540)
    args.add_argument("--batch", type=int, default=16)
    args.add_argument("--count", type=int, default=6000)
    args.add_argument("--rate", type=float, default=2e-3)
    opts = args.parse_args()
    for spec in SPECS:
        if not opts.only or spec.name in opts.only.split(","):
            train(spec, opts.work, opts.model, opts.out, opts.seconds, opts.batch, opts.count, opts.rate)


if __name__ == "__main__":
    main()
