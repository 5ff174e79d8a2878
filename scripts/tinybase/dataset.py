"""Captions and pictures, drawn at random from a seed: the same seed gives the same data set."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from concepts import ALL, BACKGROUNDS, COLOURS, SUBJECTS, Concept
from drawing import Look, compose, render

SUBJECT_CONCEPTS = tuple(Concept(word, f"subject:{word}") for word in SUBJECTS)
PLACE_STEPS = 2 / 64
OPENINGS = ("", "", "", "", "a picture of ", "a picture of ", "an icon of ", "a photo of ", "a drawing of ")
STRAY_WORDS = """
big little large tiny nice happy sad old new shiny simple beautiful pretty fresh sweet tasty funny wild young
sitting flying sleeping running standing smiling with in the and very my his one two some style art icon sketch
painting cartoon vector flat logo sticker emoji realistic detailed colourful plain soft warm cold fast slow
"""


@dataclass(frozen=True)
class Sample:
    """One picture before it is drawn."""

    concept: Concept
    look: Look
    colour: str | None
    background: str
    caption: str
    scale: float
    shift: tuple[float, float]


def with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" and not words.startswith(("uni", "ufo")) else "a ") + words


def _stray(rng: random.Random) -> str:
    """A word that means nothing to the model: an everyday one or a made-up one."""
    if rng.random() < 0.5:
        return rng.choice(STRAY_WORDS.split())
    return "".join(rng.choice("aaabcdeeefghiiklmnooprstuwy") for _ in range(rng.randint(2, 7)))


def caption(noun: str, colour: str | None, background: str | None, rng: random.Random) -> str:
    """`[a picture of] a [stray] [colour] noun [stray] [on a colour background]`; now and then the noun alone.

    Stray words teach that a word the model does not know changes nothing.
    """
    words = noun if colour is None else f"{colour} {noun}"
    stray = rng.random()
    if stray < 0.16:
        words = f"{_stray(rng)} {words}"
    elif stray < 0.22:
        words = f"{words} {_stray(rng)}"
    if rng.random() < 0.8:
        words = rng.choice(OPENINGS) + with_article(words)
    elif stray > 0.92:
        words = f"{_stray(rng)} {_stray(rng)} of {with_article(words)}"
    return words if background is None else f"{words} on {with_article(background)} background"


def draw_sample(rng: random.Random, concept: Concept, look: Look) -> Sample:
    """Chooses colour, background, size and place. An unnamed background is white."""
    colour = rng.choice(tuple(COLOURS)) if concept.recolour and rng.random() < 0.55 else None
    named = rng.random() < 0.6
    background = rng.choice(tuple(BACKGROUNDS)) if named else "white"
    text = caption(concept.noun, colour, background if named else None, rng)
    shift = (rng.uniform(-PLACE_STEPS, PLACE_STEPS), rng.uniform(-PLACE_STEPS, PLACE_STEPS))
    return Sample(concept, look, colour, background, text, rng.uniform(0.88, 0.96), shift)


def samples(count: int, seed: int, looks: Sequence[Look], concepts: Sequence[Concept] = ALL) -> list[Sample]:
    """`count` samples, each concept about equally often."""
    rng = random.Random(seed)
    return [draw_sample(rng, concepts[i % len(concepts)], rng.choice(looks)) for i in range(count)]


def picture(work: Path, sample: Sample) -> np.ndarray:
    """The sample as uint8 (64, 64, 3)."""
    icon = render(work, sample.concept, sample.colour, sample.look)
    background = BACKGROUNDS[sample.background]
    return np.asarray(compose(icon, sample.look, background, sample.scale, sample.shift))


def pictures(work: Path, chosen: Sequence[Sample]) -> np.ndarray:
    """Many samples as uint8 (n, 64, 64, 3)."""
    return np.stack([picture(work, sample) for sample in chosen])
