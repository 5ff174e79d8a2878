"""The commands and their options: words only, the work is imported when a command runs."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lorry.cli.console import tell_error
from lorry.cli.converting import convert
from lorry.cli.debugging import Debug, wants_debug
from lorry.cli.options import (
    DtypeName,
    LoraChoice,
    Size,
    Varied,
    check_apart,
    parse_lora,
    parse_size,
    parse_varied,
)
from lorry.cli.train_options import with_settings
from lorry.cli.workbench import add_workbench
from lorry.errors import LorryError

STOPPED = 130
"""The exit code of what Ctrl-C has ended, by which a script knows not to go on with half a run."""


class _Commands(TyperGroup):
    """Commands whose foreseen errors end in one message and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (LorryError, OSError) as error:
            if wants_debug(ctx):
                raise
            tell_error(error)
            raise typer.Exit(1) from None


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"lorry {importlib.metadata.version('lorry')}")
        raise typer.Exit


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _lorry(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Draw with LoRA-type adapters for diffusion models, and look into their files."""
    os.environ.setdefault(
        "TRANSFORMERS_VERBOSITY", "error"
    )  # it has notes for programmers when it is imported


@app.command()
def inspect(
    file: Annotated[str, typer.Argument(help="An adapter file, or the name of one that lorry ships.")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER",
            help="Say as well what loading it would do: into a known base model (sd15, sdxl, flux, …), a pipeline's "
            "folder, or shipped.",
        ),
    ] = None,
    weights: Annotated[
        bool,
        typer.Option(
            "--weights", help="Read the weights as well: strength, spectra and effective rank by block."
        ),
    ] = False,
    hashes: Annotated[
        bool, typer.Option("--hashes", help="The hashes by which Civitai, A1111 and kohya know the file.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A picture of strength, spectra and ranks (.png, .svg or .pdf)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with metadata in full.")] = False,
    _debug: Debug = False,
) -> None:
    """Say what an adapter file holds, from its header alone unless more is asked for."""
    from lorry.cli.inspecting import inspect_and_print
    from lorry.cli.workbench.further import Further

    if not inspect_and_print(file, Further(weights, hashes, plot), model, as_json=as_json):
        raise typer.Exit(1)


@app.command()
def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help="What to draw; several may be given. It may name adapters: `<lora:NAME:0.8>`.",
        ),
    ] = None,
    lora: Annotated[
        list[LoraChoice] | None,
        typer.Option(
            metavar="FILE[:SCALE]",
            parser=parse_lora,
            help="An adapter: a file, a folder, a Hub id, or the name of one that lorry ships; may be repeated.",
        ),
    ] = None,
    library: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where the adapters are that prompts name; those that lorry ships when not given.",
        ),
    ] = None,
    te_first: Annotated[
        bool,
        typer.Option("--te-first", help="Read `<lora:NAME:A:B>` as A1111 does: A for the text encoders."),
    ] = False,
    like: Annotated[
        Path | None,
        typer.Option(
            metavar="PICTURE",
            help="Draw a picture that A1111, Forge or lorry made again; other options change it.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|HUBID|shipped", help="The base model, in diffusers' layout."),
    ] = None,
    negative: Annotated[str | None, typer.Option(metavar="TEXT", help="What not to draw.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps; the base model's usual number when not given.")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="How closely to follow the prompt; the base model's usual when not given."),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(min=0, help="A picture's seed, 0 when not given; may be repeated.")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures of each prompt: seeds count up from the last one given."),
    ] = None,
    size: Annotated[
        Size | None,
        typer.Option(
            metavar="N|WxH",
            parser=parse_size,
            help="The pictures' size; the base model's usual when not given.",
        ),
    ] = None,
    vary: Annotated[
        list[Varied] | None,
        typer.Option(
            metavar="FILE[:SCALE,SCALE,…]",
            parser=parse_varied,
            help="An adapter to draw by itself, at each strength; may be repeated: each is a picture of its own.",
        ),
    ] = None,
    grid: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="All pictures as one, with prompts, adapters, strengths, seeds as labels."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="A file (.png, .jpg, .webp), numbered when there are several, or a folder; here when not given, or "
            "nowhere with `--grid`.",
        ),
    ] = None,
    fuse: Annotated[
        bool, typer.Option("--fuse", help="Fuse the adapters into the weights before drawing.")
    ] = False,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, mps, …")] = "auto",
    dtype: Annotated[
        DtypeName, typer.Option(help="auto: float32 on the CPU, float16 elsewhere.")
    ] = DtypeName.AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    _debug: Debug = False,
) -> None:
    """Draw pictures, with or without adapters. Each says in its file how it was made."""
    from lorry.cli.generate import Order, generate_and_print

    if not prompts and like is None:
        raise typer.BadParameter("give a PROMPT, or a picture with `--like`.")
    order = Order(
        prompts=tuple(prompts or ()),
        seeds=tuple(seed or ()),
        count=count,
        loras=tuple(lora or ()),
        library=library,
        te_first=te_first,
        base=base,
        negative=negative,
        steps=steps,
        guidance=guidance,
        size=size,
        vary=tuple(vary or ()),
        out=Path() if out is None and grid is None else out,
        fuse=fuse,
        device=device,
        dtype=dtype.value,
    )
    generate_and_print(order, like=like, grid=grid, as_json=as_json)


@app.command()
@with_settings
def train(
    given: dict[str, Any],
    data: Annotated[str | None, typer.Argument(help="The folder of pictures and captions.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Settings in TOML, as a run writes them; options go before them."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Go on with the run in this folder, as it was set.")
    ] = None,
    _debug: Debug = False,
) -> None:
    """Train an adapter on a folder of pictures."""
    from lorry.cli.training import train_and_tell

    if resume is not None:
        chosen = {"--config": config, "--out": given.get("out")}
        check_apart(
            "--resume", chosen, "The run goes on in its folder, with the settings that are written there."
        )
    if not train_and_tell({**given, "data": data} if data else given, config, resume).finished:
        raise typer.Exit(STOPPED)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the pictures go.")] = Path("lorry-demo"),
    _debug: Debug = False,
) -> None:
    """Draw with the shipped model and its adapters, check every promise, and write one labelled sheet."""
    from lorry.cli.demo import run_demo

    run_demo(out)


@app.command()
def version() -> None:
    """Print the version."""
    _show_version(True)


app.command()(convert)
add_workbench(app)


def main() -> None:
    """Run the command that the command line names."""
    app()
