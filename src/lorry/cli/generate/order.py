"""What the user asks for, and the pictures that come of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final, final

import typer

from lorry.cli.generate.naming import Shelf, Use
from lorry.cli.options import LoraChoice, Size, Varied, chosen_seeds
from lorry.errors import AdapterNotFoundError, FileError, PromptError
from lorry.prompts import Prompt, parse_prompt

AXES: Final = ("prompt", "adapter", "seed", "strength")
"""What pictures of one order may differ in."""
PICTURE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")


@final
@dataclass(frozen=True, slots=True)
class Order:
    """What the user asks for; None where nothing is said."""

    prompts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    count: int | None = None
    loras: tuple[LoraChoice, ...] = ()
    library: Path | None = None
    te_first: bool = False
    base: str | None = None
    negative: str | None = None
    steps: int | None = None
    guidance: float | None = None
    size: Size | None = None
    vary: tuple[Varied, ...] = ()
    """Adapters of which each is drawn by itself, at each of its strengths."""
    out: Path | None = None
    """Where single pictures go; None for nowhere."""
    fuse: bool = False
    device: str = "auto"
    dtype: str = "auto"
    files: Mapping[str, str] = field(default_factory=dict)
    """{adapter's name: its file}, for names that go before those of the library."""
    hashes: Mapping[str, str] = field(default_factory=dict)
    """{adapter's name: the first digits that its file's hash should have}."""


@final
@dataclass(frozen=True, slots=True)
class Job:
    """One picture to draw. It is drawn by itself, so that it does not depend on what else is asked for."""

    text: str
    """The prompt without its adapters."""
    uses: tuple[Use, ...]
    seed: int
    path: Path | None
    labels: Mapping[str, str] = field(default_factory=dict)
    """What it has on each of `AXES`."""

    @property
    def prompt(self) -> str:
        """The prompt with all its adapters."""
        return str(Prompt(self.text, tuple(use.tag for use in self.uses)))


def plan_jobs(order: Order) -> list[Job]:
    """Return the pictures to draw: each prompt with each seed, each with a file of its own.

    Raises:
        PromptError: a prompt cannot be read.
        AdapterNotFoundError: it names an adapter that is not in the library.
        typer.BadParameter: there are more seeds than pictures, or nothing to fuse.
    """
    if order.library is not None and not order.library.expanduser().is_dir():
        raise AdapterNotFoundError(
            f"{order.library}: there is no such folder. Expected a folder of adapter files."
        )
    if parse_prompt(order.negative or "").loras:
        raise PromptError(
            "The negative prompt names an adapter. Adapters act on the whole picture: name it in the prompt."
        )
    seeds = chosen_seeds(order.seeds, order.count)
    prompts = {prompt: parse_prompt(prompt, te_first=order.te_first) for prompt in order.prompts}
    shelf = Shelf(order.library, order.files)
    uses = {
        prompt: (*map(shelf.named, found.loras), *map(shelf.chosen, order.loras))
        for prompt, found in prompts.items()
    }
    variants = [*_variants(order, shelf)] or [("", "", ())]
    if order.fuse and not any(used for used in (*uses.values(), *(varied for *_, varied in variants))):
        raise typer.BadParameter(
            "nothing to fuse: name an adapter in a prompt or by `--lora`, or leave `--fuse` away."
        )
    places = [(prompt, variant, seed) for prompt in order.prompts for variant in variants for seed in seeds]
    return [
        Job(
            prompts[prompt].text,
            (*uses[prompt], *varied),
            seed,
            path,
            dict(zip(AXES, (prompt, name, f"seed {seed}", scale), strict=True)),
        )
        for (prompt, (name, scale, varied), seed), path in zip(places, _paths(order, places), strict=True)
    ]


def _variants(order: Order, shelf: Shelf) -> Iterator[tuple[str, str, tuple[Use, ...]]]:
    """Yield (adapter, strength, its use) for each adapter that is drawn by itself."""
    for varied in order.vary:
        for scale in varied.scales:
            use = shelf.varied(varied.source, scale)
            yield use.tag.name, f"strength {scale:g}", (use,)


Place = tuple[str, tuple[str, str, tuple[Use, ...]], int]
"""A prompt, an adapter that is varied, a seed."""


def _paths(order: Order, places: list[Place]) -> Iterator[Path | None]:
    if order.out is None:
        yield from (None for _ in places)
    elif order.out.suffix.lower() not in PICTURE_SUFFIXES:
        if order.out.suffix[1:].isalpha() and not order.out.is_dir():
            raise FileError(
                f"{order.out}: expected a picture's name, which ends in {', '.join(PICTURE_SUFFIXES)}, or a folder. "
                "Make the folder first, if one of that name is meant."
            )
        slugs = _slugs(order.prompts)
        stems = []
        for prompt, (name, scale, _), seed in places:
            words = [word for word in (name, scale.rpartition(" ")[2]) if word]
            varied = "".join("-" + re.sub(r"[^\w.-]+", "-", word) for word in words)
            stems.append(f"{slugs[prompt]}{varied}-{seed}")
        yield from (order.out / f"{stem}.png" for stem in _told_apart(stems))
    elif len(places) == 1:
        yield order.out
    else:
        yield from (order.out.with_stem(f"{order.out.stem}-{number}") for number in range(1, len(places) + 1))


def _slugs(prompts: tuple[str, ...]) -> dict[str, str]:
    """A file name for each prompt; prompts that begin alike are told apart by a number."""
    each = list(dict.fromkeys(prompts))
    slugs = [re.sub(r"\W+", "-", text.lower()).strip("-")[:60].strip("-") or "picture" for text in each]
    return dict(zip(each, _told_apart(slugs), strict=True))


def _told_apart(names: Iterable[str]) -> Iterator[str]:
    """Yield names, with a number where one before is the same; upper and lower case are the same to some disks."""
    taken: set[str] = set()
    for name in names:
        numbered = (name if number == 1 else f"{name}-no{number}" for number in count(1))
        free = next(one for one in numbered if one.lower() not in taken)
        taken.add(free.lower())
        yield free
