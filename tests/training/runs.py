"""Folders of pictures, a random base, and runs of a few steps on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

import lorry
from lorry.training.loop import Result
from lorry.training.run import train
from lorry.training.settings import Settings
from lorry.training.watching import Progress, Watcher


def picture(path: Path, seed: int, size: tuple[int, int] = (20, 16), caption: str | None = "") -> Path:
    """Write a picture of noise, and its caption beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption or f"thing {seed}")
    return path


def pictures(folder: Path, count: int = 5) -> Path:
    """A folder of a few pictures in three shapes."""
    for seed in range(count):
        picture(folder / f"{seed}.png", seed, [(16, 16), (24, 12), (16, 24)][seed % 3])
    return folder


@final
class Listening(Watcher):
    """Keeps what it is told."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.notes: list[str] = []
        self.steps: list[Progress] = []
        self.files: list[tuple[str, int]] = []
        self.end: tuple[str, int, float, bool] | None = None
        self._stop_at = stop_at

    def note(self, text: str) -> None:
        self.notes.append(text)

    def prepare(self, what: str, done: int, count: int) -> None:
        pass

    def step(self, progress: Progress) -> None:
        self.steps.append(progress)
        if progress.step == self._stop_at:
            import signal

            signal.raise_signal(signal.SIGINT)

    def saved(self, path: Path, step: int) -> None:
        self.files.append((path.name, step))

    def ended(self, adapter: Path, step: int, average: float, *, finished: bool) -> None:
        self.end = (adapter.name, step, average, finished)


SMALL: dict[str, Any] = {
    "resolution": 16,
    "batch": 2,
    "steps": 4,
    "rank": 2,
    "rate": 1e-2,
    "targets": "attention",
    "tensorboard": False,
    "name": "toy",
}


def settings(data: Path, base: Path, out: Path, **changes: Any) -> Settings:
    return Settings().changed({"data": str(data), "base": str(base), "out": str(out), **SMALL, **changes})


def run(
    data: Path, base: Path, out: Path, watcher: Watcher | None = None, resume: bool = False, **changes: Any
) -> Result:
    return train(settings(data, base, out, **changes), watcher or Listening(), resume=resume)


def drawn(base: Path, adapter: Path | None = None, *, by_lorry: bool = False) -> Tensor:
    """A picture of a base, with a file that lorry or diffusers itself has loaded: (1, 3, height, width)."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    pipeline = lorry.attach(pipeline) if by_lorry else pipeline
    pipeline.set_progress_bar_config(disable=True)
    if adapter is not None:
        pipeline.load_lora_weights(str(adapter))
    noise = torch.Generator().manual_seed(1)
    return pipeline("a thing", num_inference_steps=2, generator=noise, output_type="pt").images
