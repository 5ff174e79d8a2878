"""What the demo draws, in which order, and what it checks on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, final

from lorry.binding import LoadReport
from lorry.cli.demo.studio import Pictures, Snapshot, Studio
from lorry.cli.drawing import load_lora
from lorry.cli.options import LoraChoice
from lorry.workflows import FileReport, inspect_file

PROMPTS: Final = (
    "a red apple",
    "a cat",
    "a house",
    "a blue car on a yellow background",
    "a mushroom",
    "a rocket",
    "a tulip",
    "a teapot",
)
WORD_PROMPTS: Final = (
    "a {}",
    "a {} on a blue background",
    "a {} on a yellow background",
    "a {} on a pink background",
)
"""What is asked of each word that an adapter teaches."""
MIXED: Final = ("line", "pixel")
"""The styles that are mixed; the first two, where they are others."""
MIXES: Final = ((0.8, 0.2), (0.5, 0.5), (0.2, 0.8))
"""The strengths at which they are mixed. The last mix is fused."""
WORD_AND_STYLE: Final = (1.0, 0.6)
"""The strengths of an adapter that teaches words and of the first style beside it: a stronger style hides the words."""
FUSED_TOLERANCE: Final = 0.001
"""How far a fused row's pixels may be from the unfused one's, where 1 is from black to white. Fusing rounds each weight
once more, and the denoising steps multiply that; bits come back from unfusing, not from fusing."""


@final
@dataclass(frozen=True, slots=True)
class Check:
    """Something that lorry promises, and whether it was so."""

    promise: str
    kept: bool

    def __str__(self) -> str:
        return f"{self.promise}: {'yes' if self.kept else 'NO'}"


@final
@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """A row of the sheet."""

    title: str
    note: str
    pictures: Pictures
    check: Check | None = None


@final
@dataclass(frozen=True, eq=False, slots=True)
class Section:
    """Rows that share their prompts."""

    prompts: tuple[str, ...]
    rows: tuple[Row, ...]


@final
@dataclass(frozen=True, eq=False, slots=True)
class Story:
    """All that the demo drew and found out."""

    sections: tuple[Section, ...]
    reports: tuple[LoadReport, ...]
    weights: Check
    """Whether the models were at last, bit for bit, what they were at first."""

    @property
    def checks(self) -> tuple[Check, ...]:
        """Every check, in the order of the sheet."""
        rows = [row for section in self.sections for row in section.rows]
        return (*(row.check for row in rows if row.check is not None), self.weights)


@final
@dataclass(frozen=True, slots=True)
class Cast:
    """The adapters of the demo, told apart by what their headers say they teach."""

    reports: Mapping[str, FileReport]
    words: Mapping[str, tuple[str, ...]]
    """{adapter: the words it teaches}; all other adapters are styles."""

    @property
    def styles(self) -> tuple[str, ...]:
        """The adapters that change how everything looks."""
        return tuple(name for name in self.reports if name not in self.words)

    @property
    def mixed(self) -> tuple[str, ...]:
        """The two styles that are mixed; fewer where there are fewer."""
        return MIXED if set(MIXED) <= set(self.styles) else self.styles[:2]

    @property
    def word_prompts(self) -> tuple[str, ...]:
        """Prompts with the taught words, as many as a row has."""
        taught = [word for words in self.words.values() for word in words]
        return tuple(frame.format(word) for frame in WORD_PROMPTS for word in taught)[: len(PROMPTS)]

    @property
    def row_count(self) -> int:
        """How many rows the story has."""
        word_rows = 1 + (2 if self.mixed else 1) * len(self.words) if self.words else 0
        return 2 + len(self.styles) + (len(MIXES) + 2 if len(self.mixed) == 2 else 0) + word_rows


def cast_of(files: Mapping[str, Path]) -> Cast:
    """Read the headers of the demo's adapters.

    Raises:
        FormatError: one of them cannot be applied.
    """
    reports = {name: inspect_file(path) for name, path in files.items()}
    for report in reports.values():
        if report.problem is not None:
            raise report.problem
    words = {name: report.metadata.get("modelspec.trigger_phrase", "") for name, report in reports.items()}
    return Cast(reports, {name: tuple(listed.split(", ")) for name, listed in words.items() if listed})


def tell_story(studio: Studio, cast: Cast) -> Story:
    """Draw everything, and check on the way that adapters act, and that they come off without a trace."""
    first = Snapshot.of(studio.pipeline)
    plain = Row("no adapter", "the base model alone", studio.draw(PROMPTS, "no adapter"))
    words = _plain_words(studio, cast)
    loaded = {name: _load(studio, name, report) for name, report in cast.reports.items()}
    notes = {name: _described(cast.reports[name], report) for name, report in loaded.items()}
    rows = [
        plain,
        *(_alone(studio, name, notes[name], PROMPTS, plain) for name in cast.styles),
        *_mixes(studio, cast),
    ]
    words += [row for name in cast.words for row in _word_rows(studio, cast, name, notes[name], words[0])]
    with studio.watch.time("unload all"):
        studio.pipeline.unload_lora_weights()
    rows.append(_unloaded(studio, plain))
    clean = Snapshot.of(studio.pipeline).same_bits(first)
    sections = (Section(PROMPTS, tuple(rows)), Section(cast.word_prompts, tuple(words)))
    return Story(
        tuple(section for section in sections if section.rows),
        tuple(loaded.values()),
        Check("unloaded, every weight, module class and hook is what it was", clean),
    )


def _load(studio: Studio, name: str, report: FileReport) -> LoadReport:
    with studio.watch.time("load an adapter"):
        return replace(load_lora(studio.pipeline, LoraChoice(report.source), name), source=name)


def _switch(studio: Studio, strengths: Mapping[str, float]) -> None:
    with studio.watch.time("switch or mix adapters"):
        studio.pipeline.set_adapters(list(strengths), list(strengths.values()))


def _described(file: FileReport, loaded: LoadReport) -> str:
    """What an adapter is, in a few words under its row's title."""
    ranks = [rank for part in loaded.components for rank in part.ranks]
    span = f"rank {min(ranks)}" + (f" to {max(ranks)}" if max(ranks) > min(ranks) else "") if ranks else ""
    title = file.metadata.get("modelspec.title", "")
    kind = ", ".join(filter(None, (loaded.dialect, span)))
    return "\n".join(filter(None, (title, kind, " + ".join(part.component for part in loaded.components))))


def _alone(studio: Studio, name: str, note: str, prompts: tuple[str, ...], plain: Row) -> Row:
    """One adapter at full strength."""
    _switch(studio, {name: 1.0})
    pictures = studio.draw(prompts, "one adapter")
    check = Check(f"{name} changes every picture", pictures.changed(plain.pictures) == len(prompts))
    return Row(f"{name} 1", note, pictures, check)


def _mixed(studio: Studio, strengths: Mapping[str, float], prompts: tuple[str, ...]) -> Row:
    _switch(studio, strengths)
    title = " + ".join(f"{name} {strength:g}" for name, strength in strengths.items())
    return Row(title, "two adapters at once", studio.draw(prompts, "two adapters"))


def _mixes(studio: Studio, cast: Cast) -> list[Row]:
    """Two styles at several strengths; the last mix fused, and unfused again."""
    if len(cast.mixed) < 2:
        return []
    rows = [_mixed(studio, dict(zip(cast.mixed, strengths, strict=True)), PROMPTS) for strengths in MIXES]
    return [*rows, *_fused_and_back(studio, rows[-1])]


def _fused_and_back(studio: Studio, mixed: Row) -> list[Row]:
    with studio.watch.time("fuse two adapters"):
        studio.pipeline.fuse_lora()
    fused = studio.draw(PROMPTS, "two adapters, fused")
    with studio.watch.time("unfuse them"):
        studio.pipeline.unfuse_lora()
    unfused = studio.draw(PROMPTS, "two adapters")
    far = fused.distance(mixed.pictures)
    near = Check(
        f"fused, no pixel is off by more than {FUSED_TOLERANCE:g} (the furthest: {far:.1g})",
        far <= FUSED_TOLERANCE,
    )
    equal = Check(
        "unfused, pictures equal those before fusing, bit for bit", unfused.same_bits(mixed.pictures)
    )
    return [
        Row("the same, fused", "added into the weights", fused, near),
        Row("unfused again", "the saved weights are back", unfused, equal),
    ]


def _plain_words(studio: Studio, cast: Cast) -> list[Row]:
    if not cast.words:
        return []
    pictures = studio.draw(cast.word_prompts, "no adapter")
    return [Row("no adapter", "the base model was never taught these words", pictures)]


def _word_rows(studio: Studio, cast: Cast, name: str, note: str, plain: Row) -> list[Row]:
    """An adapter that teaches words, alone and together with a style."""
    rows = [_alone(studio, name, note, cast.word_prompts, plain)]
    if cast.mixed:
        both = dict(zip((name, cast.mixed[0]), WORD_AND_STYLE, strict=True))
        rows.append(_mixed(studio, both, cast.word_prompts))
    return rows


def _unloaded(studio: Studio, plain: Row) -> Row:
    pictures = studio.draw(PROMPTS, "no adapter")
    equal = Check(
        "unloaded, pictures equal those of the first row, bit for bit", pictures.same_bits(plain.pictures)
    )
    return Row("all unloaded", "as if no adapter had ever been there", pictures, equal)
