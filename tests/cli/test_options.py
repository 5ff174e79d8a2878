"""What the words on the command line mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from lorry.cli.options import LoraChoice, chosen_seeds, find_adapter, parse_lora, parse_size
from lorry.errors import AdapterNotFoundError


@pytest.mark.parametrize(
    ("text", "source", "scale"),
    [
        ("line", "line", 1.0),
        ("line:0.8", "line", 0.8),
        ("line:-1", "line", -1.0),
        ("line:.5", "line", 0.5),
        ("a/b.safetensors:1e-1", "a/b.safetensors", 0.1),
        (r"C:\x.safetensors", r"C:\x.safetensors", 1.0),
        (r"C:\x.safetensors:0.5", r"C:\x.safetensors", 0.5),
        ("C:/x.safetensors", "C:/x.safetensors", 1.0),
        ("owner/name:2", "owner/name", 2.0),
        ("line:half", "line:half", 1.0),
        (":0.5", ":0.5", 1.0),
    ],
)
def test_a_strength_is_a_number_after_the_last_colon(text: str, source: str, scale: float) -> None:
    assert parse_lora(text) == LoraChoice(source, scale)


def test_a_file_whose_name_ends_like_a_strength_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "v:2").write_bytes(b"")
    assert parse_lora(str(tmp_path / "v:2")) == LoraChoice(str(tmp_path / "v:2"))


@pytest.mark.parametrize("text", ["line:", "line:nan", "line:inf"])
def test_a_strength_that_can_be_none_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="strength"):
        parse_lora(text)


def test_sizes_are_one_number_or_two() -> None:
    assert parse_size("64") == (64, 64)
    assert parse_size("64x96") == (64, 96)


@pytest.mark.parametrize("text", ["", "64x", "x64", "0", "64x0", "large", "-8"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="expected a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("seeds", "count", "expected"),
    [
        ((), None, (0,)),
        ((), 3, (0, 1, 2)),
        ((7,), 3, (7, 8, 9)),
        ((7, 3), None, (7, 3)),
        ((7, 3), 3, (7, 3, 4)),
    ],
)
def test_seeds_count_up_from_the_last_one_given(
    seeds: tuple[int, ...], count: int | None, expected: tuple[int, ...]
) -> None:
    assert chosen_seeds(seeds, count) == expected


def test_more_seeds_than_pictures_are_refused() -> None:
    with pytest.raises(typer.BadParameter, match="3 seeds and a count of 2"):
        chosen_seeds((1, 2, 3), 2)


def test_a_file_goes_before_a_shipped_adapter_of_that_name(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_adapter("ink") == str(shipped / "loras" / "ink.safetensors")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ink").mkdir()
    assert find_adapter("ink") == "ink"


def test_a_hub_id_is_left_as_it_is(shipped: Path) -> None:
    assert find_adapter("somebody/pixel-art.xl") == "somebody/pixel-art.xl"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("inkk", r"Did you mean 'ink'\?"),
        ("gone.safetensors", r"ink, wax, words"),
        ("folder/gone.safetensors", r"expected a file"),
        ("ink:half", r"Is 'half' meant as a strength\?"),
    ],
)
def test_an_adapter_that_is_nowhere_is_an_error_with_a_hint(shipped: Path, source: str, said: str) -> None:
    with pytest.raises(AdapterNotFoundError, match=said):
        find_adapter(source)
