"""Trains the UNet and the text encoder together on cached latents, and exports a pipeline every few minutes."""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from common import Clock, Muon, average_gradients, cosine_after, run_workers, split_parameters
from dataset import Sample, pictures, samples
from models import LENGTH, export, new_scheduler, new_text_encoder, new_tokenizer, new_unet
from train_vae import to_tensor

MUON_RATE, ADAM_RATE = 0.01, 2e-3
EMPTY = 0.1
EMA = 0.999


@torch.no_grad()
def encode(vae: AutoencoderTiny, work: Path, chosen: list[Sample]) -> Tensor:
    """Latents of the samples."""
    parts = [to_tensor(pictures(work, chosen[i : i + 64])) for i in range(0, len(chosen), 64)]
    return torch.cat([vae.encoder(part) for part in parts])


class Velocity:
    """The noise schedule as a loss: noised latents in, the velocity to be predicted out."""

    def __init__(self) -> None:
        self._alphas = new_scheduler().alphas_cumprod

    def noised(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(noisy latents, time steps spread evenly over the schedule, target velocity)."""
        n = len(latents)
        steps = ((torch.randperm(n) + torch.rand(n)) / n * 1000).long().clamp(max=999)
        a = self._alphas[steps].sqrt()[:, None, None, None]
        b = (1 - self._alphas[steps]).sqrt()[:, None, None, None]
        noise = torch.randn_like(latents)
        return a * latents + b * noise, steps, a * noise - b * latents


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """As the pipeline makes them: padded to the full length."""
    ids: Tensor = tokenizer(
        captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def with_empty(ids: Tensor, empty: Tensor, rng: random.Random) -> Tensor:
    """Some captions are emptied, which is what guidance subtracts."""
    ids = ids.clone()
    for i in range(len(ids)):
        if rng.random() < EMPTY:
            ids[i] = empty
    return ids


def text_states(text: CLIPTextModel, ids: Tensor) -> Tensor:
    states: Tensor = text(ids)[0]
    return states


class Average:
    """An exponential moving average of the parameters; it is what is exported."""

    def __init__(self, model: nn.Module) -> None:
        self._params = list(model.parameters())
        self._average = [p.detach().clone() for p in self._params]
        self._count = 0

    @torch.no_grad()
    def update(self) -> None:
        self._count += 1
        decay = min(EMA, (1 + self._count) / (10 + self._count))
        torch._foreach_lerp_(self._average, self._params, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the average with the live values; twice is no change."""
        for p, average in zip(self._params, self._average, strict=True):
            live = p.clone()
            p.copy_(average)
            average.copy_(live)


def _export_average(
    both: nn.ModuleDict, average: Average, tokenizer: CLIPTokenizer, work: Path, out: Path
) -> None:
    """Copies the averaged weights into new models, because exporting turns them to fp16."""
    text, unet = new_text_encoder(tokenizer), new_unet()
    average.swap()
    text.load_state_dict(both["text"].state_dict())
    unet.load_state_dict(both["unet"].state_dict())
    average.swap()
    torch.save({"text": text.state_dict(), "unet": unet.state_dict()}, work / "base.pt")
    export(out, tokenizer, text.eval(), unet.eval(), AutoencoderTiny.from_pretrained(work / "vae").eval())


def train(
    rank: int,
    work: Path,
    out: Path,
    seconds: float,
    count: int,
    batch: int,
    every: float,
    start_from: str,
    hold: float,
) -> None:
    """One worker of the training."""
    vae = AutoencoderTiny.from_pretrained(work / "vae").eval()
    tokenizer = new_tokenizer()
    chosen = samples(count, 200 + rank, ("base",))
    latents, ids = encode(vae, work, chosen), token_ids(tokenizer, [s.caption for s in chosen])
    empty = token_ids(tokenizer, [""])[0]
    torch.manual_seed(0)
    unet: UNet2DConditionModel = new_unet()
    text = new_text_encoder(tokenizer)
    if start_from:
        state = torch.load(start_from)
        unet.load_state_dict(state["unet"])
        text.load_state_dict(state["text"])
    unet.to(memory_format=torch.channels_last)
    both = nn.ModuleDict({"text": text.train(), "unet": unet.train()})
    matrices, rest = split_parameters(both)
    muon, adam = Muon(matrices, MUON_RATE, decay=0.1), torch.optim.AdamW(rest, ADAM_RATE, weight_decay=0.0)
    average, velocity, rng = Average(both), Velocity(), random.Random(rank)
    torch.manual_seed(rank + 1)
    if rank == 0:
        print(
            f"latents: mean {latents.mean():.3f} std {latents.std():.3f}, {len(latents)} a worker", flush=True
        )
    clock, step, begin, losses, exported = Clock(seconds), 0, time.monotonic(), [], time.monotonic()
    while (progress := clock.progress()) < 1:
        rate = min(1.0, (step + 1) / 100) * cosine_after(progress, hold)
        muon.param_groups[0]["lr"], adam.param_groups[0]["lr"] = MUON_RATE * rate, ADAM_RATE * rate
        pick = torch.randint(0, count, (batch,))
        noisy, steps, target = velocity.noised(latents[pick])
        states = text_states(text, with_empty(ids[pick], empty, rng))
        loss = F.mse_loss(unet(noisy, steps, states).sample, target)
        both.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(both.parameters())
        muon.step()
        adam.step()
        average.update()
        step += 1
        losses.append(loss.item())
        if rank == 0 and step % 100 == 0:
            mean, losses = sum(losses) / len(losses), []
            print(f"step {step} {time.monotonic() - begin:.0f}s loss {mean:.4f} rate {rate:.2f}", flush=True)
        if rank == 0 and time.monotonic() - exported > every:
            exported = time.monotonic()
            _export_average(both, average, tokenizer, work, out)
            print(f"exported at step {step}", flush=True)
    if rank == 0:
        _export_average(both, average, tokenizer, work, out)
        print(f"done: {step} steps, {step * batch * 2} pictures", flush=True)


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--work", type=Path, required=True)
    args.add_argument("--out", type=Path, required=True, help="folder of the exported pipeline")
    args.add_argument("--seconds", type=float, default=3900)
    args.add_argument("--count", type=int, default=20000, help="cached pictures a worker")
    args.add_argument("--batch", type=int, default=24)
    args.add_argument("--every", type=float, default=600, help="seconds between exports")
    args.add_argument("--start-from", default="", help="a base.pt to go on from")
    args.add_argument("--hold", type=float, default=0.4, help="part of the time before the rates fall")
    opts = args.parse_args()
    run_workers(
        train,
        opts.work,
        opts.out,
        opts.seconds,
        opts.count,
        opts.batch,
        opts.every,
        opts.start_from,
        opts.hold,
        port=29512,
    )


if __name__ == "__main__":
    main()
