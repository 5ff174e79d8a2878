"""`lorry generate`: what is asked for is planned, loaded, drawn, written and printed."""

from __future__ import annotations

import inspect
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from PIL.Image import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lorry.cli.console import console, tell, tell_error
from lorry.cli.drawing import SHIPPED, SHIPPED_GUIDANCE, SHIPPED_STEPS, load_pipeline, quiet
from lorry.cli.generate.adapting import Wardrobe
from lorry.cli.generate.layout import panels_of
from lorry.cli.generate.order import Job, Order, plan_jobs
from lorry.cli.generate.record import Making, read_order, save_picture
from lorry.cli.grid import draw_grid
from lorry.cli.pictures import kind_of, make_room, write_picture
from lorry.errors import FileError, LorryError, PromptError, StateError
from lorry.prompts import Parameters, find_unclosed

NO_NUMBERS: Final = "invalid value encountered in cast"
"""What numpy warns of where diffusers makes a picture of NaN."""


def generate_and_print(
    order: Order, *, like: Path | None = None, grid: Path | None = None, as_json: bool = False
) -> list[Path]:
    """Draw what is asked for, printing what is loaded and what is written.

    Args:
        order: what is asked for.
        like: a picture that says the rest.
        grid: where to write all pictures as one, labelled.
        as_json: print one JSON object in place of words.

    Raises:
        LorryError: of the kind that loading the base model or an adapter raises.
        StateError: the base model takes no such argument, or not such a one.
        PromptError: a prompt, or what `like` says, cannot be read.
        FileError: a picture cannot be written where it is to go; nothing is drawn then.
    """
    order = order if like is None else read_order(like, order)
    jobs = plan_jobs(order)
    if grid is not None:
        kind_of(grid)
        if grid in {job.path for job in jobs}:
            raise FileError(f"{grid}: the grid and a single picture cannot be one file. Choose another name.")
    loaded = load_pipeline(order.base or SHIPPED, order.device, order.dtype)
    arguments = _arguments(order, loaded.pipeline)
    wardrobe = Wardrobe.filled(loaded.pipeline, [job.uses for job in jobs])
    _tell_idle_negative(loaded.pipeline, arguments)
    making = Making(order, loaded, arguments)
    _tell_adapters(jobs, wardrobe, order, making, as_json=as_json)
    make_room(path for path in (*(job.path for job in jobs), grid) if path is not None)
    made: list[Parameters] = []
    drawn: list[Image] = []
    with _drawing(loaded.pipeline, arguments, len(jobs)) as draw:
        for job in jobs:
            wardrobe.wear(job.uses, fused=order.fuse)
            picture = draw(job)
            made.append(making.parameters(job, picture))
            drawn.append(picture)
            if job.path is not None:
                save_picture(picture, job.path, made[-1])
    if grid is not None:
        write_picture(draw_grid(panels_of(jobs, drawn)), grid)
    _tell_pictures(jobs, wardrobe, made, grid, as_json=as_json)
    return [job.path for job in jobs if job.path is not None]


def _arguments(order: Order, pipeline: Any) -> dict[str, Any]:
    if order.guidance is not None and not math.isfinite(order.guidance):
        raise StateError(f"A guidance of {order.guidance}: expected a finite number.")
    shipped = order.base in (None, SHIPPED)
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


def _tell_idle_negative(pipeline: Any, arguments: Mapping[str, Any]) -> None:
    """Say where the model does not look at the negative prompt; a picture made so is drawn again as it was."""
    known = inspect.signature(pipeline.__call__).parameters
    name = "true_cfg_scale" if "true_cfg_scale" in known else "guidance_scale"
    guidance = arguments.get(name, known[name].default) if name in known else None
    if arguments.get("negative_prompt") and isinstance(guidance, int | float) and guidance <= 1:
        what_to_do = " Give a `--guidance` above 1." if name == "guidance_scale" else ""
        tell_error(
            PromptError(
                f"{type(pipeline).__name__} does not look at the negative prompt with a `{name}` of {guidance:g}: it "
                f"is drawn without.{what_to_do}"
            )
        )


def _tell_adapters(
    jobs: list[Job], wardrobe: Wardrobe, order: Order, making: Making, *, as_json: bool
) -> None:
    for open_tag in dict.fromkeys(tag for job in jobs for tag in find_unclosed(job.text)):
        tell_error(
            PromptError(f"`{open_tag}` has no `>` at its end: it is drawn as text, and names no adapter.")
        )
    uses = list(dict.fromkeys(use for job in jobs for use in job.uses))
    for use in uses:
        expected, got = order.hashes.get(use.tag.name), making.hash_of(use.source)
        if expected and got and not got.startswith(expected):
            tell_error(
                StateError(
                    f"{use.said} is another file than the picture was made with: {got[:12]}, not {expected}."
                )
            )
    if as_json:
        return
    for source, report in wardrobe.reports.items():
        tell(report)
        for use in uses:
            if use.source == source:
                tell(f"  strength {use.strength}")
    if order.fuse and uses:
        tell("fused into the weights")


def _tell_pictures(
    jobs: list[Job], wardrobe: Wardrobe, made: list[Parameters], grid: Path | None, *, as_json: bool
) -> None:
    if not as_json:
        for path in (*(job.path for job in jobs), grid):
            if path is not None:
                tell(path)
        return
    pictures = [
        {"path": None if job.path is None else str(job.path), "labels": dict(job.labels), **asdict(said)}
        for job, said in zip(jobs, made, strict=True)
    ]
    adapters = [asdict(report) for report in wardrobe.reports.values()]
    said = {"pictures": pictures, "adapters": adapters, "grid": None if grid is None else str(grid)}
    tell(json.dumps(said, indent=2, ensure_ascii=False))


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    return Progress(*columns, TimeRemainingColumn(), console=console(stderr=True))


@contextmanager
def _drawing(pipeline: Any, arguments: Mapping[str, Any], count: int) -> Iterator[Callable[[Job], Image]]:
    """Give a function that draws a picture, under one bar for all of them."""
    with _progress() as progress:
        task = progress.add_task("drawing", total=None)
        done = 0

        def draw(job: Job) -> Image:
            nonlocal done
            progress.update(task, description=f"{job.text} (seed {job.seed})")

            def show(pipeline: Any, step: int, _timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
                steps = len(pipeline.scheduler.timesteps)
                progress.update(task, completed=done * steps + step + 1, total=count * steps)
                return state

            # The noise is drawn on the CPU, so that a seed means the same picture on every device.
            noise = torch.Generator("cpu").manual_seed(job.seed)
            try:
                with quiet():
                    warnings.filterwarnings("error", NO_NUMBERS, RuntimeWarning)
                    made = pipeline(job.text, generator=noise, callback_on_step_end=show, **arguments)
            except RuntimeWarning as error:
                raise StateError(
                    f"The picture of {job.text!r} (seed {job.seed}) came out as NaN, which would be black. Lower the "
                    "guidance or the strengths, or choose another `--dtype`."
                ) from error
            except ValueError as error:
                if isinstance(error, LorryError):
                    raise
                raise StateError(f"{type(pipeline).__name__} cannot draw this: {error}") from error
            done += 1
            return made.images[0]

        yield draw
