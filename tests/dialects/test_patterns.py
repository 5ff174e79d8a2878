"""Patterns of PEFT's configs: the same answers as PEFT's, in bounded time whatever the pattern."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.dialects import _patterns
from lorry.dialects._patterns import Patterns, matches_whole
from lorry.errors import FormatError

words = st.sampled_from(["a", "b", "to_q", "0"])
paths = st.lists(words, min_size=1, max_size=4).map(".".join)
patterns = st.lists(
    st.one_of(paths, paths.map("^{}".format), st.sampled_from(["a.*", r"\d", "b|0", "(a", ""]))
)


@given(patterns.filter(lambda found: "(a" not in found), paths)
def test_the_first_pattern_wins_as_with_peft(found: list[str], path: str) -> None:
    expected = next((pattern for pattern in found if re.match(rf"(.*\.)?({pattern})$", path)), None)
    assert Patterns(found).find(path) == expected


def test_a_pattern_that_runs_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_patterns, "TIME_LIMIT", 0.01)
    slow = "(a|a|b)*(a|b|a)*(a|b)*(a|b)*[cd]"
    with pytest.raises(FormatError, match=r"a pattern that takes longer than 0\.01 s to match `aaaa"):
        Patterns([slow]).find("a" * 3000)
    with pytest.raises(FormatError, match="Write it more simply"):
        matches_whole(slow, "a" * 3000)


def test_what_is_no_pattern_is_named() -> None:
    for pattern in ("(a", "(" * 5000):
        with pytest.raises(FormatError, match=r"The adapter's config has the pattern '\("):
            Patterns([pattern])
