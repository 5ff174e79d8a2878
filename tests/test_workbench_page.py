"""The walk-through of the workbench runs from its first line to its last, and prints what it shows."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from lorry.assets import lora_files
from lorry.cli.app import app

PROMPTS = Path(__file__).resolve().parents[1] / "docs" / "prompts.md"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "workbench.md"
BLOCK = re.compile(r"^```(sh|text|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]\d+)?")


def check_shows(output: str, line: str) -> None:
    """Raise where no line of the output is `line`, but for spaces and small differences of its numbers."""
    words = " ".join(NUMBER.sub("#", line).split())
    numbers = [float(number) for number in NUMBER.findall(line)]
    alike = [found for found in output.splitlines() if " ".join(NUMBER.sub("#", found).split()) == words]
    assert any(
        [float(n) for n in NUMBER.findall(found)] == pytest.approx(numbers, rel=0.03, abs=0.02)
        for found in alike
    ), f"{line!r} is not in what was printed:\n{output}"


def test_every_command_runs_and_prints_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORRY_CACHE", str(tmp_path / "cache"))
    output, commands = "", 0
    for kind, text in BLOCK.findall(PAGE.read_text("utf-8")):
        if kind == "python":
            exec(compile(text, str(PAGE), "exec"), {})
        elif kind == "text":
            for line in text.splitlines():
                check_shows(output, line)
        else:
            output = ""
            for command in text.splitlines():
                program, *words = shlex.split(command)
                assert program == "lorry"
                result = CliRunner().invoke(app, words)
                assert result.exit_code == 0, f"{command}: {result.output} {result.exception!r}"
                output += result.stdout
                commands += 1
    assert commands >= 19
    drawn = {"library.png", "cat.png", "again.png", "grid.png"}
    assert {path.name for path in tmp_path.glob("*.png")} == {"neon.png", "both.png", "curve.png", *drawn}
    with Image.open(tmp_path / "cat.png") as one, Image.open(tmp_path / "again.png") as other:
        assert one.tobytes() == other.tobytes()


def test_every_command_on_prompts_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORRY_CACHE", str(tmp_path / "cache"))
    Path("my-adapters").mkdir()
    for file in lora_files().values():
        shutil.copy(file, "my-adapters")
    commands = [
        line
        for kind, text in BLOCK.findall(PROMPTS.read_text("utf-8"))
        for line in text.splitlines()
        if kind == "sh"
    ]
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, f"{command}: {result.output} {result.exception!r}"
    assert len(commands) == 5
    assert {path.name for path in tmp_path.glob("*.png")} >= {"grid.png", "sheet.png"}


def test_a_line_that_was_not_printed_is_found() -> None:
    check_shows("  keeps 93.2%, rank 1", "keeps 93.3%, rank 1")
    for wrong in ("keeps 80.0%, rank 1", "keeps 93.2%, rank one"):
        with pytest.raises(AssertionError, match="not in what was printed"):
            check_shows("  keeps 93.2%, rank 1", wrong)
