"""Adapters in prompts: the forms that other programs have, and text that nobody foresaw."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.errors import PromptError
from lorry.prompts import LoraTag, Prompt, find_unclosed, parse_prompt

MIDD = (1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("prompt", "text", "loras"),
    [
        # A1111
        ("a cat", "a cat", ()),
        ("a cat <lora:ink>", "a cat", (LoraTag("ink"),)),
        ("a cat <lora:ink:0.8>", "a cat", (LoraTag("ink", 0.8),)),
        ("<lora:ink:.8>a cat", "a cat", (LoraTag("ink", 0.8),)),
        ("<lora:ink:-1>", "", (LoraTag("ink", -1.0),)),
        ("<lora:ink:1:unet=0.3>", "", (LoraTag("ink", 0.3, 1.0),)),
        ("<lora:ink:1:te=0.3>", "", (LoraTag("ink", 1.0, 0.3),)),
        ("<lora:ink:0.6:te=0.3:unet=0.4>", "", (LoraTag("ink", 0.4, 0.3),)),
        ("<lora:ink:te=0.2:unet=0.3>", "", (LoraTag("ink", 0.3, 0.2),)),
        ("<LORA:Ink:1>", "", (LoraTag("Ink"),)),
        ("<lora:ink v2 (final):0.8>", "", (LoraTag("ink v2 (final)", 0.8),)),
        ("<lora: ink : 0.8 >", "", (LoraTag("ink", 0.8),)),
        ("a <lora:ink:1> cat <lora:wax:0.5>", "a cat", (LoraTag("ink"), LoraTag("wax", 0.5))),
        ("<lora:ink:0.5><lora:ink:0.5>", "", (LoraTag("ink", 0.5), LoraTag("ink", 0.5))),
        ("(a cat <lora:ink:0.5>:1.2)", "(a cat :1.2)", (LoraTag("ink", 0.5),)),
        ("[a:<lora:ink:0.5>b:0.5]", "[a:b:0.5]", (LoraTag("ink", 0.5),)),
        ("a, <lora:ink:0.5>, b", "a, , b", (LoraTag("ink", 0.5),)),
        ("a\n<lora:ink:0.5>\nb", "a b", (LoraTag("ink", 0.5),)),
        ("a cat, <lyco:ink:0.5>", "a cat,", (LoraTag("ink", 0.5),)),
        ("<lycoris:ink:0.5>", "", (LoraTag("ink", 0.5),)),
        # SwarmUI: the denoiser before the text encoders
        ("<lora:ink:0.5:0.2>", "", (LoraTag("ink", 0.5, 0.2),)),
        ("<lora:styles/ink:0.5>", "", (LoraTag("styles/ink", 0.5),)),
        (r"<lora:styles\ink:0.5>", "", (LoraTag(r"styles\ink", 0.5),)),
        # LoRA Block Weight
        ("<lora:ink:1:lbw=MIDD>", "", (LoraTag("ink", blocks="MIDD"),)),
        ("<lora:ink:1:MIDD>", "", (LoraTag("ink", blocks="MIDD"),)),
        ('<lora:"ink one":1:lbw=MIDD>', "", (LoraTag("ink one", blocks="MIDD"),)),
        (f"<lora:ink:0.7:{','.join(f'{n:g}' for n in MIDD)}>", "", (LoraTag("ink", 0.7, blocks=MIDD),)),
        ("<lyco:ink:1:1:lbw=1,0.5,0>", "", (LoraTag("ink", 1.0, 1.0, (1.0, 0.5, 0.0)),)),
        ("<lora:ink:w=1,0.5,0>", "", (LoraTag("ink", blocks=(1.0, 0.5, 0.0)),)),
        ("<lora:ink:1:lbw=X,0.5,0:x=0.7>", "", (LoraTag("ink", blocks=(0.7, 0.5, 0.0)),)),
        ("<lora:ink:1:lbw=X,0.5,0>", "", (LoraTag("ink", blocks=(1.0, 0.5, 0.0)),)),
        ("<lora:ink:lbw=ALL:stop=10>", "", (LoraTag("ink", blocks="ALL", stop=10),)),
        ("<lora:ink:start=10>", "", (LoraTag("ink", start=10),)),
        ("<lora:ink:step=5-10>", "", (LoraTag("ink", start=5, stop=10),)),
        ("<lora:ink:start=0.25:stop=0.5>", "", (LoraTag("ink", start=0.25, stop=0.5),)),
        # loractl, which Forge Neo's users know
        ("<lora:ink:0@0,1@0.5>", "", (LoraTag("ink", points=((0.0, 0.0), (0.5, 1.0))),)),
        ("<lora:ink:0.4:0@0,1@1>", "", (LoraTag("ink", 1.0, 0.4, points=((0.0, 0.0), (1.0, 1.0))),)),
        ("<lora:ink:unet=1@5,0@1>", "", (LoraTag("ink", points=((1.0, 0.0), (5.0, 1.0))),)),
        # not ours
        ("<hypernet:x:1> <random:a, b> a < b <3 >_<", "<hypernet:x:1> <random:a, b> a < b <3 >_<", ()),
        ("<lora:ink", "<lora:ink", ()),
        ("lora:ink:1>", "lora:ink:1>", ()),
        ("<lora> <lora ink>", "<lora> <lora ink>", ()),
        # escapes
        (r"\<lora:ink:1>", "<lora:ink:1>", ()),
        (r"\\<lora:ink:1>", "\\", (LoraTag("ink"),)),
        (r"\\\<lora:ink:1> x", r"\<lora:ink:1> x", ()),
        (r"\(a\) \<3", r"\(a\) \<3", ()),
        (r"<lora:a\:b\>c\<d\=e\\f:1>", "", (LoraTag(r"a:b>c<d=e\f"),)),
        (r"<lora:\"a\":1>", "", (LoraTag('"a"'),)),
    ],
)
def test_a_prompt_is_read_as_written(prompt: str, text: str, loras: tuple[LoraTag, ...]) -> None:
    assert parse_prompt(prompt) == Prompt(text, loras)


def test_two_numbers_can_be_read_as_a1111_does() -> None:
    assert parse_prompt("<lora:ink:0.5:0.2>", te_first=True).loras == (LoraTag("ink", 0.2, 0.5),)
    assert parse_prompt("<lora:ink:0.5>", te_first=True).loras == (LoraTag("ink", 0.5),)


def test_the_text_encoders_go_by_the_denoiser_where_nothing_else_is_said() -> None:
    assert LoraTag("x", 0.5).text_encoder_scale == 0.5
    assert LoraTag("x", 0.5, 0.1).text_encoder_scale == 0.1
    assert LoraTag("x", points=((0.0, 0.3), (1.0, 1.0))).text_encoder_scale == 0.3


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("<lora:>", "has no name"),
        ("<lora: :1>", "has no name"),
        ("<lora:ink:>", "expected something between two colons"),
        ("<lora:ink:1:2:3>", "has 3 strengths"),
        ("<lora:ink:nan>", "expected a finite number, got 'nan'"),
        ("<lora:ink:te=much>", "te: expected a number, got 'much'"),
        ("<lora:ink:te=1:te=1>", "says `te=` twice"),
        ("<lora:ink:1:MIDD:lbw=MIDD>", "the blocks' factors twice"),
        ("<lora:ink:1,half,0>", "a block's factor: expected a number, got 'half'"),
        ("<lora:ink:lbw=R,1,U>", "at random"),
        ("<lora:ink:lbwe=ATTN>", "Strengths"),
        ("<lora:ink:stp=3>", "Did you mean 'stop'"),
        ("<lora:ink:start=x>", "start: expected a number"),
        ("<lora:ink:start=1.5>", "expected a step .* or a share"),
        ("<lora:ink:step=5>", "expected two steps"),
        ("<lora:ink:0@0,1>", "expected `strength@position`"),
        ("<lora:ink:0@-1,1@0>", "a position is at least 0"),
        ("<lora:ink:0@0,1@1:unet=1>", "the strength twice"),
        ("<lora:ink:1:1:0@0,1@1>", "the strength twice"),
    ],
)
def test_a_tag_that_makes_no_sense_is_an_error_that_shows_it(tag: str, said: str) -> None:
    with pytest.raises(PromptError, match=said) as caught:
        parse_prompt(f"a cat {tag} and a dog")
    assert f"`{tag}` (character 7 of the prompt)" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a cat <lora:ink:0.7", ["<lora:ink:0.7"]),
        ("<lora:ink  <LyCo:wax:1> <lyco:", ["<lora:ink", "<lyco:"]),
        (r"\<lora:ink", []),
        ("<lora:ink:1>", []),
        ("a < b, <lora ink", []),
    ],
)
def test_tags_without_an_end_are_found(text: str, found: list[str]) -> None:
    assert find_unclosed(text) == found


PIECES = st.sampled_from(
    [
        *'<>:\\=,@"( .x1-',
        "<lora:",
        "<lyco:",
        "lbw=",
        "start=",
        "step=",
        "te=",
        "unet=",
        "0.5",
        "MIDD",
        "\n",
        ">",
    ]
)


@given(st.lists(PIECES, max_size=30).map("".join))
def test_reading_never_crashes_and_what_is_read_prints_and_reads_the_same(text: str) -> None:
    try:
        prompt = parse_prompt(text)
    except PromptError:
        return
    assert parse_prompt(str(prompt)) == prompt


NUMBERS = st.floats(-1e6, 1e6)
STEPS = st.none() | st.integers(0, 1000) | st.floats(0, 1)
PLACES = st.lists(
    st.tuples(st.floats(0, 50), NUMBERS), min_size=1, max_size=4, unique_by=lambda point: point[0]
)


STRIPPED = st.text(min_size=1).map(str.strip).filter(bool)
FIELDS = st.fixed_dictionaries(
    {
        "name": STRIPPED,
        "scale": NUMBERS,
        "text_scale": st.none() | NUMBERS,
        "blocks": st.none()
        | st.text("ABC:<>\\=.", min_size=1)
        | st.lists(NUMBERS, min_size=2, max_size=26).map(tuple),
        "start": STEPS,
        "stop": STEPS,
        "points": st.just(()) | PLACES.map(sorted).map(tuple),
    }
)


@given(st.text(), st.lists(FIELDS, max_size=3))
def test_every_prompt_that_can_be_made_prints_and_reads_back(text: str, loras: list[dict[str, Any]]) -> None:
    tags = [LoraTag(**{**fields, "scale": 1.0 if fields["points"] else fields["scale"]}) for fields in loras]
    prompt = Prompt(text.strip(), tuple(tags))
    assert parse_prompt(str(prompt)) == prompt
