"""`lorry demo`: prints, draws, checks, writes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lorry.assets import lora_files
from lorry.cli.console import console, tell
from lorry.cli.demo.sheet import as_image, draw_sheet
from lorry.cli.demo.story import Cast, Check, Story, cast_of, tell_story
from lorry.cli.demo.studio import Stopwatch, Studio
from lorry.cli.drawing import SHIPPED, SHIPPED_GUIDANCE, SHIPPED_STEPS, load_pipeline
from lorry.cli.pictures import make_room, write_picture
from lorry.errors import LorryError

SHEET_NAME: Final = "sheet.png"
PICTURES_NAME: Final = "pictures"


def run_demo(out: Path, steps: int = SHIPPED_STEPS) -> Story:
    """Draw with the shipped model and adapters, and write the pictures to `out`.

    Raises:
        LorryError: a check failed; everything is drawn, written and printed all the same.
    """
    start = time.perf_counter()
    make_room([out / SHEET_NAME, out / PICTURES_NAME / SHEET_NAME])
    cast = cast_of(lora_files())
    watch = Stopwatch()
    with watch.time("load the base model"):
        pipeline = load_pipeline(SHIPPED, device="cpu").pipeline
    with _progress(cast, steps) as on_step:
        story = tell_story(Studio(pipeline, steps, SHIPPED_GUIDANCE, watch, on_step), cast)
    _write(story, out, steps)
    _print(story, watch)
    seconds = time.perf_counter() - start
    tell(
        f"Look at {out / SHEET_NAME}; the single pictures are in {out / PICTURES_NAME}. {seconds:.0f} s in all."
    )
    _refuse_broken(story.checks)
    return story


@contextmanager
def _progress(cast: Cast, steps: int) -> Iterator[Callable[[], None]]:
    columns = (TextColumn("drawing"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeElapsedColumn())
    with Progress(*columns, console=console(stderr=True)) as progress:
        task = progress.add_task("", total=cast.row_count * steps)
        yield lambda: progress.advance(task)


def _write(story: Story, out: Path, steps: int) -> None:
    subtitle = (
        f"Every picture is 64x64 (shown twice as large), {steps} steps, CPU, float32. "
        "A column has the same prompt and the same noise from top to bottom."
    )
    title = "lorry demo: one small model, with and without adapters"
    write_picture(draw_sheet(title, subtitle, story.sections), out / SHEET_NAME)
    for part, section in enumerate(story.sections, 1):
        for number, row in enumerate(section.rows, 1):
            for prompt, pixels in zip(section.prompts, row.pictures.pixels, strict=True):
                name = f"{part}-{number:02}-{_slug(row.title)}--{_slug(prompt)}.png"
                write_picture(as_image(pixels), out / PICTURES_NAME / name)


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text.lower()).strip("-")


def _print(story: Story, watch: Stopwatch) -> None:
    tell("what was loaded", "bold")
    for report in story.reports:
        tell(report)
    tell("what was checked", "bold")
    for check in story.checks:
        tell(check, "green" if check.kept else "bold red")
    tell("what took how long", "bold")
    console().print(_timings(watch))


def _timings(watch: Stopwatch) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0))
    table.add_column()
    table.add_column("times", justify="right")
    table.add_column("each", justify="right")
    for what, seconds in watch.seconds.items():
        table.add_row(what, f"{len(seconds)}", _readable(sum(seconds) / len(seconds)))
    return table


def _readable(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def _refuse_broken(checks: tuple[Check, ...]) -> None:
    broken = [check.promise for check in checks if not check.kept]
    if broken:
        raise LorryError(f"{len(broken)} of {len(checks)} checks failed: {'; '.join(broken)}.")
