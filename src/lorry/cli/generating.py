"""`lorry generate`."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lorry.cli.console import console, tell
from lorry.cli.drawing import SHIPPED, SHIPPED_GUIDANCE, SHIPPED_STEPS, load_lora, load_pipeline, quiet
from lorry.cli.options import LoraChoice, Size
from lorry.errors import StateError

PICTURE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")


@final
@dataclass(frozen=True, slots=True)
class Order:
    """What the user asks for."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    loras: tuple[LoraChoice, ...] = ()
    base: str = SHIPPED
    negative: str | None = None
    steps: int | None = None
    guidance: float | None = None
    size: Size | None = None
    out: Path = Path()
    fuse: bool = False
    device: str = "auto"
    dtype: str = "auto"


@final
@dataclass(frozen=True, slots=True)
class Job:
    """One picture to draw. It is drawn by itself, so that it does not depend on what else is asked for."""

    prompt: str
    seed: int
    path: Path


def generate_and_print(order: Order) -> list[Path]:
    """Draw what is asked for, printing what is loaded and what is written.

    Raises:
        LorryError: of the kind that loading the base model or an adapter raises.
        StateError: the base model takes no such argument.
    """
    jobs = plan_jobs(order)
    pipeline = load_pipeline(order.base, order.device, order.dtype).pipeline
    arguments = _arguments(order, pipeline)
    _take_loras(pipeline, order)
    for folder in {job.path.parent for job in jobs}:
        folder.mkdir(parents=True, exist_ok=True)
    with _progress() as progress:
        task = progress.add_task("drawing", total=None)
        for done, job in enumerate(jobs):
            picture = _draw(pipeline, job, arguments, progress, task, done, len(jobs))
            _save(picture, job, order)
    for job in jobs:
        tell(job.path)
    return [job.path for job in jobs]


def plan_jobs(order: Order) -> list[Job]:
    """Return the pictures to draw: each prompt with each seed, each with a file of its own."""
    pairs = [(prompt, seed) for prompt in order.prompts for seed in order.seeds]
    return [Job(prompt, seed, path) for (prompt, seed), path in zip(pairs, _paths(order, pairs), strict=True)]


def _paths(order: Order, pairs: list[tuple[str, int]]) -> Iterator[Path]:
    if order.out.suffix.lower() not in PICTURE_SUFFIXES:
        slugs = _slugs(order.prompts)
        yield from (order.out / f"{slugs[prompt]}-{seed}.png" for prompt, seed in pairs)
    elif len(pairs) == 1:
        yield order.out
    else:
        yield from (order.out.with_stem(f"{order.out.stem}-{number}") for number in range(1, len(pairs) + 1))


def _slugs(prompts: tuple[str, ...]) -> dict[str, str]:
    """A file name for each prompt; prompts that begin alike are told apart by a number."""
    slugs: dict[str, str] = {}
    for prompt in prompts:
        slug = re.sub(r"\W+", "-", prompt.lower()).strip("-")[:60].strip("-") or "picture"
        alike = sum(
            re.fullmatch(rf"{re.escape(slug)}(-no\d+)?", other) is not None for other in slugs.values()
        )
        slugs.setdefault(prompt, f"{slug}-no{alike + 1}" if alike else slug)
    return slugs


def _arguments(order: Order, pipeline: Any) -> dict[str, Any]:
    shipped = order.base == SHIPPED
    wanted = {
        "num_inference_steps": order.steps or (SHIPPED_STEPS if shipped else None),
        "guidance_scale": SHIPPED_GUIDANCE if shipped and order.guidance is None else order.guidance,
        "negative_prompt": order.negative,
        "width": order.size and order.size.width,
        "height": order.size and order.size.height,
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    known = inspect.signature(pipeline.__call__).parameters
    for name in given:
        if name not in known:
            raise StateError(
                f"{type(pipeline).__name__} takes no `{name}`: leave that option away for this base model."
            )
    return given


def _take_loras(pipeline: Any, order: Order) -> None:
    names = [f"lora{number}" for number in range(1, len(order.loras) + 1)]
    for name, choice in zip(names, order.loras, strict=True):
        tell(f"{load_lora(pipeline, choice, name)}\n  strength {choice.scale:g}")
    if names:
        pipeline.set_adapters(names, [choice.scale for choice in order.loras])
    if names and order.fuse:
        pipeline.fuse_lora()
        tell("fused into the weights")


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    return Progress(*columns, TimeRemainingColumn(), console=console(stderr=True))


def _draw(
    pipeline: Any, job: Job, arguments: Mapping[str, Any], progress: Progress, task: Any, done: int, jobs: int
) -> Image:
    progress.update(task, description=f"{job.prompt} (seed {job.seed})")

    def show(pipeline: Any, step: int, _timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        steps = len(pipeline.scheduler.timesteps)
        progress.update(task, completed=done * steps + step + 1, total=jobs * steps)
        return state

    # The noise is drawn on the CPU, so that a seed means the same picture on every device.
    noise = torch.Generator("cpu").manual_seed(job.seed)
    with quiet():
        return pipeline(job.prompt, generator=noise, callback_on_step_end=show, **arguments).images[0]


def _save(picture: Image, job: Job, order: Order) -> None:
    if job.path.suffix.lower() != ".png":
        picture.save(job.path)
        return
    made_by = {"prompt": job.prompt, "seed": job.seed, "base": order.base, "negative": order.negative}
    info = PngInfo()
    info.add_text("lorry", json.dumps({**made_by, "loras": [f"{c.source}:{c.scale:g}" for c in order.loras]}))
    picture.save(job.path, pnginfo=info)
