"""Numbers for some layers only, by a pattern on their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import final

from lorry.binding.kinds import kind_of
from lorry.binding.patterns import covers, has_segments
from lorry.errors import StateError, did_you_mean
from lorry.workflows.matching import Layer


@final
@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern, and one number for all or one for each of several adapters."""

    pattern: str
    """Whole segments of a layer's name in a row: `down_blocks.1`, `attn2`, `to_q`, `text_encoder`, or a kind of layer
    (`attention`, `convolution`, …). A `*` stands for any characters."""
    numbers: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(map(isfinite, self.numbers)):
            raise StateError(f"`{self.pattern}`: expected finite numbers, got {self.numbers}.")

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read `PATTERN=NUMBER[,NUMBER…]`.

        Raises:
            StateError: it is not of that form, or a number is not finite.
        """
        pattern, _, numbers = text.rpartition("=")
        try:
            found = tuple(float(number) for number in numbers.split(","))
        except ValueError:
            found = ()
        if not found or not pattern.strip():
            raise StateError(f"{text!r}: expected PATTERN=NUMBER, as in `down_blocks.1=0.5`.")
        return cls(pattern.strip(), found)

    def matches(self, layer: Layer) -> bool:
        """Whether the pattern is in one of a layer's names, or is its kind or component."""
        return covers(self.pattern, layer.target) or has_segments(self.pattern, layer.name)


def check_rules(rules: Sequence[Rule], layers: Sequence[Layer], adapters: int = 1) -> None:
    """Raise where a rule says nothing: no layer has its pattern, or it has numbers for other adapters than there are.

    Raises:
        StateError: names the rule.
    """
    for rule in rules:
        if len(rule.numbers) not in (1, adapters):
            raise StateError(
                f"`{rule.pattern}`: {len(rule.numbers)} numbers for {adapters} adapters: expected one for all, or one "
                "for each."
            )
        if not any(rule.matches(layer) for layer in layers):
            words = {
                word for layer in layers for word in (*layer.target.path.split("."), kind_of(layer.target))
            }
            raise StateError(f"No layer has {rule.pattern!r} in its name.{did_you_mean(rule.pattern, words)}")


def check_ranks(rules: Sequence[Rule]) -> None:
    """Raise where a rule's number is no rank.

    Raises:
        StateError: names the rule.
    """
    for rule in rules:
        for number in rule.numbers:
            if number < 1 or number != int(number):
                raise StateError(f"`{rule.pattern}`: expected a rank of 1 or more, got {number:g}.")


def number_for(layer: Layer, rules: Sequence[Rule], adapter: int = 0) -> float | None:
    """Return the number of the last rule that matches a layer, or None where none does."""
    for rule in reversed(rules):
        if rule.matches(layer):
            return rule.numbers[adapter if len(rule.numbers) > 1 else 0]
    return None
