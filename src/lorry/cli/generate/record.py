"""How a picture was made: written into its file, and read back."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, final

import typer
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from lorry.cli.drawing import SHIPPED, Loaded
from lorry.cli.generate.order import Job, Order
from lorry.cli.options import find_adapter, parse_size
from lorry.cli.pictures import write_picture
from lorry.errors import AdapterNotFoundError, FileError, PromptError
from lorry.files import find_weights, weights_hash
from lorry.prompts import Parameters, parse_parameters
from lorry.prompts.tags import number

CHUNK: Final = "parameters"
_EXIF, _COMMENT = 0x8769, 0x9286
_ENCODING: Final = b"UNICODE\0"
SAMPLERS: Final = {
    "EulerDiscreteScheduler": "Euler",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "FlowMatchEulerDiscreteScheduler": "Euler",
    "HeunDiscreteScheduler": "Heun",
    "LMSDiscreteScheduler": "LMS",
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "DPMSolverSDEScheduler": "DPM++ SDE",
    "UniPCMultistepScheduler": "UniPC",
    "DDIMScheduler": "DDIM",
    "LCMScheduler": "LCM",
    "PNDMScheduler": "PLMS",
}
"""What A1111 calls diffusers' schedulers; others go by their own name."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class Making:
    """What all pictures of an order share."""

    order: Order
    loaded: Loaded
    arguments: Mapping[str, Any]
    """Those that the pipeline is called with."""
    _hashes: dict[str, str | None] = field(default_factory=dict)

    def parameters(self, job: Job, picture: Image.Image) -> Parameters:
        """Return how a picture of these is made."""
        pipeline, uses = self.loaded.pipeline, job.uses
        steps = self._argument("num_inference_steps")
        guidance = self._argument("guidance_scale")
        hashes = {use.tag.name: found[:12] for use in uses if (found := self.hash_of(use.source))}
        files = {use.tag.name: use.said for use in uses if Path(use.said).exists()}
        settings = {
            "Steps": str(steps if steps is not None else len(pipeline.scheduler.timesteps)),
            "Sampler": sampler_of(pipeline),
            "CFG scale": "" if guidance is None else number(guidance),
            "Seed": str(job.seed),
            "Size": f"{picture.width}x{picture.height}",
            "Model": self.order.base or SHIPPED,
            "Lora hashes": ", ".join(f"{_hashable(name)}: {digest}" for name, digest in hashes.items()),
            "Lora files": json.dumps(files, ensure_ascii=False) if files else "",
            "Precision": str(self.loaded.dtype).removeprefix("torch."),
            "Fused": str(True) if self.order.fuse and uses else "",
            "Version": program(),
        }
        kept = {name: value for name, value in settings.items() if value}
        return Parameters(job.prompt, self.order.negative or "", kept)

    def _argument(self, name: str) -> Any:
        known = inspect.signature(self.loaded.pipeline.__call__).parameters
        return self.arguments.get(name, known[name].default if name in known else None)

    def hash_of(self, source: str) -> str | None:
        """Return the hash of an adapter's file; None for what is no single file on this machine."""
        if source not in self._hashes:
            try:
                self._hashes[source] = weights_hash(find_weights(source, local_files_only=True))
            except FileError:
                self._hashes[source] = None
        return self._hashes[source]


def _hashable(name: str) -> str:
    """A name as A1111 writes it before a hash: without what parts the pairs."""
    return re.sub("[:,]", "", name)


def sampler_of(pipeline: Any) -> str:
    """Return the name of a pipeline's sampler."""
    name = type(pipeline.scheduler).__name__
    return SAMPLERS.get(name, name.removesuffix("Scheduler"))


def program() -> str:
    """Return what is said to have made a picture, with the versions that its bits depend on."""
    return ", ".join(f"{name} {version(name)}" for name in ("lorry", "diffusers", "torch"))


def save_picture(picture: Image.Image, path: Path, parameters: Parameters) -> None:
    """Write a picture with its parameters, where A1111 looks for them: a PNG's text, or the Exif comment.

    Raises:
        FileError: it cannot be written; nothing of it is left.
    """
    if path.suffix.lower() == ".png":
        info = PngInfo()
        text = str(parameters)
        add = info.add_text if text.isascii() else info.add_itxt
        add(CHUNK, text)
        write_picture(picture, path, pnginfo=info)
        return
    exif = Image.Exif()
    exif.get_ifd(_EXIF)[_COMMENT] = _ENCODING + str(parameters).encode("utf-16-be")
    write_picture(picture, path, exif=exif)


def read_picture(path: Path) -> Parameters:
    """Read how a picture was made.

    Raises:
        AdapterNotFoundError: there is no such file.
        PromptError: it is no picture, or says nothing of how it was made.
    """
    try:
        with Image.open(path) as picture:
            text = picture.info.get(CHUNK) or _comment(picture)
    except FileNotFoundError as error:
        raise AdapterNotFoundError(f"{path}: there is no such picture.") from error
    except UnidentifiedImageError as error:
        raise PromptError(f"{path}: expected a picture (.png, .jpg, .webp), got something else.") from error
    if not text:
        raise PromptError(
            f"{path} does not say how it was made: expected a text `{CHUNK}`, as A1111, Forge and `lorry generate` "
            "write it. Programs that send pictures on often take it out."
        )
    try:
        return parse_parameters(text)
    except PromptError as error:
        error.add_note(f"while reading {path}")
        raise


def _comment(picture: Image.Image) -> str | None:
    comment = picture.getexif().get_ifd(_EXIF).get(_COMMENT, b"")
    if not isinstance(comment, bytes) or not comment.startswith(_ENCODING):
        return None
    return comment.removeprefix(_ENCODING).decode("utf-16-be", "replace")


def read_order(picture: Path, order: Order) -> Order:
    """Complete an order by what a picture says of how it was made; what the order says goes first.

    Raises:
        AdapterNotFoundError: there is no such picture.
        PromptError: the picture says nothing, or what cannot be done again.
    """
    said = read_picture(picture)
    settings, ours = said.settings, said.settings.get("Version", "").startswith("lorry ")
    base = order.base or settings.get("Model", SHIPPED)
    if order.base is None and base != SHIPPED and not Path(base).is_dir():
        raise PromptError(
            f"{picture} was made with the base model {base!r}, which is no folder on this machine. Say with `--base` "
            "which one to take: what a picture says downloads nothing."
        )
    try:
        return replace(
            order,
            prompts=order.prompts or (said.prompt,),
            negative=said.negative or None if order.negative is None else order.negative,
            seeds=order.seeds or (int(settings["Seed"]),),
            steps=order.steps or int(settings["Steps"]),
            guidance=_number(settings, "CFG scale") if order.guidance is None else order.guidance,
            size=order.size or (parse_size(settings["Size"]) if "Size" in settings else None),
            dtype=settings.get("Precision", "auto") if order.dtype == "auto" else order.dtype,
            fuse=order.fuse or "Fused" in settings,
            base=base,
            te_first=order.te_first or not ours,
            files=_files(settings) if ours else {},
            hashes=said.lora_hashes,
        )
    except (ValueError, typer.BadParameter) as error:
        raise PromptError(f"{picture} says how it was made in words that make no sense: {error}") from error


def _number(settings: Mapping[str, str], name: str) -> float | None:
    return float(settings[name]) if name in settings else None


def _files(settings: Mapping[str, str]) -> dict[str, str]:
    """The files that options named, by their names in the prompt; a Hub id is not followed."""
    named = json.loads(settings.get("Lora files", "{}"))
    return {
        name: found for name, path in named.items() if (found := find_adapter(path)) and Path(found).exists()
    }
