"""What the words on the command line mean."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, final

import typer

from lorry.assets import base_folder, lora_files
from lorry.errors import AdapterNotFoundError, did_you_mean

LARGEST_SEED = 2**63 - 1


class DtypeName(StrEnum):
    """The dtypes to compute in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class Size(NamedTuple):
    """A picture's size in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def parse_size(text: str) -> Size:
    """Read `64` or `64x96`."""
    match = re.fullmatch(r"(\d+)(?:[x×](\d+))?", str(text).strip().lower())
    if match is None or "0" in match.groups():
        raise typer.BadParameter(f"expected a size such as 512 or 768x512, got {text!r}.")
    return Size(int(match[1]), int(match[2] or match[1]))


@final
@dataclass(frozen=True, slots=True)
class LoraChoice:
    """An adapter that the user names, and its strength."""

    source: str
    scale: float = 1.0

    @property
    def label(self) -> str:
        """The adapter as messages call it."""
        return f"{Path(self.source).stem if Path(self.source).is_file() else self.source} at {self.scale:g}"


def parse_lora(text: str) -> LoraChoice:
    r"""Read `FILE[:SCALE]`. The colon of `C:\x.safetensors` and of a name that exists as it stands is no strength.

    Raises:
        typer.BadParameter: what follows the last colon is a number that no strength can be, or nothing.
    """
    head, colon, tail = text.rpartition(":")
    if not colon or not head or Path(text).exists():
        return LoraChoice(text)
    try:
        scale = float(tail)
    except ValueError:
        if tail:
            return LoraChoice(text)
        raise typer.BadParameter(
            f"{text!r} ends in a colon: expected a strength after it, as in `{text}0.8`."
        ) from None
    if not math.isfinite(scale):
        raise typer.BadParameter(f"{text!r}: a strength must be a finite number.")
    return LoraChoice(head, scale)


@final
@dataclass(frozen=True, slots=True)
class Varied:
    """An adapter that is drawn by itself, at several strengths."""

    source: str
    scales: tuple[float, ...] = (1.0,)


def parse_varied(text: str) -> Varied:
    """Read `FILE[:SCALE,SCALE,…]`.

    Raises:
        typer.BadParameter: what follows the last colon is no list of strengths.
    """
    head, colon, tail = text.rpartition(":")
    if not colon or not head or Path(text).exists():
        return Varied(text)
    try:
        scales = tuple(float(scale) for scale in tail.split(","))
    except ValueError:
        scales = ()
    if not scales or not all(map(math.isfinite, scales)):
        raise typer.BadParameter(f"{text!r}: expected strengths after the colon, as in `{head}:0.5,1`.")
    return Varied(head, scales)


def find_adapter(source: str) -> str:
    """Return the path or Hub id that `source` means: a path that exists, a Hub id, or a shipped adapter.

    Raises:
        AdapterNotFoundError: it is none of the three.
        FileError: it may be a shipped one, and this installation came without them.
    """
    if Path(source).exists():
        return source
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not source.endswith((".safetensors", ".bin", ".pt")):
        return source
    shipped = lora_files()
    if source in shipped:
        return str(shipped[source])
    raise AdapterNotFoundError(
        f"There is no adapter {source!r}: expected a file, a folder, a Hub id, or one of those that lorry ships "
        f"({', '.join(shipped)}).{did_you_mean(source, shipped)}{_strength_hint(source)}"
    )


def find_base(source: str) -> str:
    """Return the path of a checkpoint; that of the shipped base model for `shipped`.

    Raises:
        FileError: the shipped one is meant, and this installation came without it.
    """
    return str(base_folder()) if source == "shipped" and not Path(source).exists() else source


def _strength_hint(source: str) -> str:
    head, _, tail = source.rpartition(":")
    return f" Is {tail!r} meant as a strength? It is not a number." if len(head) > 1 else ""


def check_needed(needed: str, given: Mapping[str, object]) -> None:
    """Raise where options were given that do nothing without another one, which was not.

    Args:
        needed: the option that was not given.
        given: the others; None where one was not.

    Raises:
        typer.BadParameter: names them.
    """
    idle = [name for name, value in given.items() if value is not None]
    if idle:
        listed = ", ".join(f"`{name}`" for name in idle)
        raise typer.BadParameter(
            f"{listed} without `{needed}`: it would do nothing. Give both, or none of them."
        )


def check_apart(one: str, given: Mapping[str, object], why: str) -> None:
    """Raise where options were given that do nothing beside another one.

    Args:
        one: the option that was given.
        given: the others; None where one was not.
        why: ends the message: why they do nothing, or what to do.

    Raises:
        typer.BadParameter: names them.
    """
    idle = [name for name, value in given.items() if value is not None]
    if idle:
        listed = ", ".join(f"`{name}`" for name in idle)
        raise typer.BadParameter(f"{listed} beside `{one}`: it would do nothing. {why}")


def chosen_seeds(seeds: Sequence[int], count: int | None) -> tuple[int, ...]:
    """Return the seeds of each prompt's pictures: those given, and as many after the last one as `count` asks for.

    Raises:
        typer.BadParameter: there are more seeds than pictures, or one is larger than torch takes.
    """
    given = tuple(seeds) or (0,)
    wanted = len(given) if count is None else count
    if max(given) + wanted > LARGEST_SEED:
        raise typer.BadParameter(f"a seed of {max(given)}: expected one below {LARGEST_SEED - wanted}.")
    if len(given) > wanted:
        raise typer.BadParameter(
            f"{len(given)} seeds and a count of {wanted}: each seed is a picture of its own."
        )
    return given + tuple(range(given[-1] + 1, given[-1] + 1 + wanted - len(given)))
