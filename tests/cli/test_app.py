"""The commands as a whole: help, versions, errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import lorry
from cli.runs import lorry_says, write_lora
from lorry.errors import AdapterNotFoundError

HEAVY = {"torch", "diffusers", "transformers", "numpy", "PIL"}


def modules_after(*words: str) -> set[str]:
    """The top-level packages that a fresh `lorry …` has loaded when it ends."""
    code = (
        "import json, sys\nfrom lorry.cli import main\nsys.argv = ['lorry', *sys.argv[1:]]\n"
        "try:\n    main()\nfinally:\n    print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "words", [["--help"], ["generate", "--help"], ["demo", "--help"], ["--version"], ["version"]]
)
def test_help_and_version_import_nothing_heavy(words: list[str]) -> None:
    assert not modules_after(*words) & HEAVY


def test_a_command_that_works_imports_torch(tmp_path: Path) -> None:
    assert "torch" in modules_after("inspect", str(write_lora(tmp_path / "x.safetensors", 0)))


@pytest.mark.parametrize("words", [["--version"], ["version"]])
def test_the_version_is_printed(words: list[str]) -> None:
    assert lorry_says(*words).output == f"lorry {lorry.__version__}\n"


def test_an_error_is_one_message_without_a_traceback(shipped: Path) -> None:
    result = lorry_says("inspect", "inkk")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: There is no adapter 'inkk'")
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_ctrl_c_while_lorry_starts_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from lorry.cli import main; main()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "")


def test_debug_lets_the_error_through(shipped: Path) -> None:
    result = lorry_says("inspect", "inkk", "--debug")
    assert isinstance(result.exception, AdapterNotFoundError)


def test_an_error_in_lorry_itself_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("lorry.cli.inspecting.inspect_and_print", broken)
    assert isinstance(lorry_says("inspect", "x").exception, ZeroDivisionError)


def test_square_brackets_in_a_message_are_text(shipped: Path) -> None:
    assert "'[red]gone[/red]'" in lorry_says("inspect", "[red]gone[/red]").stderr
