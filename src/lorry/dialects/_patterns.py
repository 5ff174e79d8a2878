"""Patterns for module paths, as PEFT's configs have them: quick for plain paths, and bounded in time for the others.

A config comes with the file, so that its patterns are a stranger's: a regular expression can be made to run for years.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain
from typing import final

import regex

from lorry.errors import FormatError

TIME_LIMIT = 0.5
"""Seconds that matching one path may take. Patterns that mean something take microseconds."""
_PLAIN = regex.compile(r"\^?\w+(\.\w+)*")


@final
class Patterns:
    """Which of some patterns, in their order, is the first that the end of a path matches.

    A pattern without special characters is looked up and not matched: converters write one for every layer, and trying
    each on each path takes seconds for a file of SDXL. (Its dots are dots then, where PEFT takes any character.)

    Source: huggingface/peft, `utils/other.py`, `get_pattern_key`.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        """Sort `patterns` by kind.

        Raises:
            FormatError: one is no regular expression.
        """
        self._plain: dict[str, int] = {}
        self._others: list[tuple[int, regex.Pattern[str]]] = []
        self._all = tuple(patterns)
        for position, pattern in enumerate(self._all):
            if _PLAIN.fullmatch(pattern):
                self._plain.setdefault(pattern, position)
            else:
                self._others.append((position, _compiled(rf"(.*\.)?({pattern})$")))

    def find(self, path: str) -> str | None:
        """Return the first pattern that matches, or None.

        Raises:
            FormatError: matching takes too long.
        """
        found = chain(
            (self._plain[ending] for ending in _endings(path) if ending in self._plain),
            (position for position, pattern in self._others if _matches(pattern, path)),
        )
        first = min(found, default=None)
        return None if first is None else self._all[first]


def matches_whole(pattern: str, path: str) -> bool:
    """Whether a pattern matches all of a path.

    Raises:
        FormatError: it is no regular expression, or matching takes too long.
    """
    return _matches(_compiled(rf"(?:{pattern})$"), path)


def _endings(path: str) -> Iterator[str]:
    """Yield the plain patterns that match a path: `^a.b.c`, `a.b.c`, `b.c`, `c`."""
    yield f"^{path}"
    yield path
    while "." in path:
        path = path.partition(".")[2]
        yield path


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> regex.Pattern[str]:
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise FormatError(f"The adapter's config has the pattern {pattern[:80]!r}: {error}.") from error


def _matches(pattern: regex.Pattern[str], path: str) -> bool:
    try:
        return pattern.match(path, timeout=TIME_LIMIT) is not None
    except TimeoutError as error:
        raise FormatError(
            f"The adapter's config has a pattern that takes longer than {TIME_LIMIT} s to match `{path}`: "
            f"{pattern.pattern[:80]!r}. Write it more simply, or as whole paths."
        ) from error
