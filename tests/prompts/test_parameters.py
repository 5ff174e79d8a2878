"""The text that says how a picture was made."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.errors import PromptError
from lorry.prompts import Parameters, parse_parameters

A1111 = """a cat, (masterpiece:1.2) <lora:ink v1:0.8>
on two lines
Negative prompt: lowres, bad: hands
and feet
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x768, Model hash: 45dee52b, \
Lora hashes: "ink v1: 6bff4c4ea08c, wax: 0123456789ab", Version: v1.9.4"""


def test_what_a1111_writes_is_read() -> None:
    found = parse_parameters(A1111)
    assert found.prompt == "a cat, (masterpiece:1.2) <lora:ink v1:0.8>\non two lines"
    assert found.negative == "lowres, bad: hands\nand feet"
    assert found.settings["Seed"] == "965400086"
    assert found.settings["Size"] == "512x768"
    assert found.lora_hashes == {"ink v1": "6bff4c4ea08c", "wax": "0123456789ab"}
    assert str(found) == A1111


def test_a_prompt_alone_has_no_settings_and_is_refused() -> None:
    with pytest.raises(PromptError, match="expected a last line such as 'Steps: 20"):
        parse_parameters("a cat: big, dog: small, cow: huge")


def test_without_prompts_there_are_settings() -> None:
    assert parse_parameters("Steps: 2, Sampler: DDIM, Seed: 1") == Parameters(
        "", "", {"Steps": "2", "Sampler": "DDIM", "Seed": "1"}
    )


LINES = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])).map(str.strip)
VALUES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(LINES, LINES, VALUES)
def test_what_is_written_reads_back(prompt: str, negative: str, value: str) -> None:
    made = Parameters(prompt, negative, {"Steps": "20", "Seed": "3", "Base": value, "Sampler": "DDIM"})
    if not prompt.startswith("Negative prompt:"):
        assert parse_parameters(str(made)) == made
