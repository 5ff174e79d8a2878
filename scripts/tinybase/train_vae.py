"""Trains the autoencoder on every look, so that style adapters have latents to aim at.

The latents are batch-normalised while training; the statistics are folded into the encoder's last convolution
at the end, so that the saved model is a plain `AutoencoderTiny` with latents of mean 0 and variance 1.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from common import Clock, Muon, average_gradients, cosine_after, run_workers, split_parameters
from dataset import pictures, samples

MIX = ("base", "base", "base", "line", "pixel", "neon")
NOISE = 0.06


def new_vae(channels: int) -> AutoencoderTiny:
    """8x smaller each way, 16 channels: as many numbers as 16x16x4, on a quarter of the places."""
    return AutoencoderTiny(
        encoder_block_out_channels=(channels,) * 4,
        decoder_block_out_channels=(channels,) * 4,
        num_encoder_blocks=(0, 1, 2, 3),
        num_decoder_blocks=(3, 3, 2, 1),
        latent_channels=16,
        scaling_factor=1.0,
    )


def to_tensor(batch: np.ndarray) -> Tensor:
    """uint8 (n, h, w, 3) to float (n, 3, h, w) in [-1, 1], channels last in memory."""
    return torch.from_numpy(batch).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def picture_loss(made: Tensor, real: Tensor) -> Tensor:
    """L1 + 2 MSE + half the L1 of the differences between neighbours, which keeps edges sharp."""
    diff = made - real
    edges = (diff[..., 1:] - diff[..., :-1]).abs().mean() + (
        diff[..., 1:, :] - diff[..., :-1, :]
    ).abs().mean()
    return diff.abs().mean() + 2 * diff.square().mean() + 0.5 * edges


def psnr(made: Tensor, real: Tensor) -> float:
    """In dB; the range of the values is 2."""
    return 10 * math.log10(4 / F.mse_loss(made.clamp(-1, 1), real).item())


@torch.no_grad()
def fold(vae: AutoencoderTiny, norm: nn.BatchNorm2d) -> None:
    """Moves the normalisation into the encoder's last convolution."""
    last = vae.encoder.layers[-1]
    scale = (norm.running_var + norm.eps).rsqrt()
    last.weight.mul_(scale[:, None, None, None])
    last.bias.sub_(norm.running_mean).mul_(scale)


def train(rank: int, work: Path, seconds: float, channels: int, count: int, batch: int) -> None:
    """One worker of the training."""
    torch.manual_seed(0)
    vae = new_vae(channels).to(memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(16, affine=False, momentum=0.02)
    bank = pictures(work, samples(count, 100 + rank, MIX))
    test = to_tensor(pictures(work, samples(96, 999, MIX)))
    rng = np.random.default_rng(rank)
    torch.manual_seed(rank + 1)
    matrices, rest = split_parameters(vae)
    muon, adam = Muon(matrices, 0.01), torch.optim.AdamW(rest, 1.5e-3, weight_decay=0.0)
    clock, step, start = Clock(seconds), 0, time.monotonic()
    while (progress := clock.progress()) < 1:
        rate = min(1.0, (step + 1) / 50) * cosine_after(progress, 0.4)
        muon.param_groups[0]["lr"], adam.param_groups[0]["lr"] = 0.01 * rate, 1.5e-3 * rate
        real = to_tensor(bank[rng.integers(0, count, batch)])
        latents = norm(vae.encoder(real))
        made = vae.decoder(latents + NOISE * torch.randn_like(latents))
        loss = picture_loss(made, real)
        vae.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(vae.parameters())
        muon.step()
        adam.step()
        step += 1
        if step % 100 == 0:
            norm.eval()
            with torch.no_grad():
                score = psnr(vae.decoder(norm(vae.encoder(test))), test)
            norm.train()
            if rank == 0:
                print(
                    f"step {step} {time.monotonic() - start:.0f}s loss {loss.item():.4f} test {score:.2f} dB",
                    flush=True,
                )
    if rank == 0:
        fold(vae, norm)
        vae.eval().save_pretrained(work / "vae")
        with torch.no_grad():
            print(f"saved: {step} steps, {psnr(vae(test).sample, test):.2f} dB on 96 unseen drawings")


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--work", type=Path, required=True)
    args.add_argument("--seconds", type=float, default=840)
    args.add_argument("--channels", type=int, default=24)
    args.add_argument("--count", type=int, default=9000)
    args.add_argument("--batch", type=int, default=8)
    opts = args.parse_args()
    run_workers(train, opts.work, opts.seconds, opts.channels, opts.count, opts.batch)


if __name__ == "__main__":
    main()
