"""What docs/training.md tells a reader to type runs, with fewer steps."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorry.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "training.md"
BLOCK = re.compile(r"^```(sh|py)\n(.*?)^```", re.DOTALL | re.MULTILINE)
FEWER = {"train": ["--steps", "2", "--sample-every", "0"], "generate": ["--steps", "2"]}


def test_from_ten_pictures_to_a_picture_drawn_with_the_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    values: dict[str, object] = {}
    for kind, text in BLOCK.findall(PAGE.read_text("utf-8")):
        if kind == "py":
            exec(compile(text, str(PAGE), "exec"), values)
            continue
        for command in text.splitlines():
            program, name, *words = shlex.split(command)
            if program != "lorry":
                assert (program, name) in {("pip", "install"), ("accelerate", "launch")}
                continue
            result = CliRunner().invoke(app, [name, *words, *FEWER[name]])
            assert result.exit_code == 0, f"{command}: {result.output} {result.exception!r}"
    assert (tmp_path / "out/chalk/losses.png").is_file()
    assert (tmp_path / "apple.png").is_file()
    assert (tmp_path / "cat.png").is_file()
    assert values["parameters"], "the loop of one's own has something to train"
