"""What the documents say is true: links lead somewhere, examples are Python, signatures are the code's."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import lorry

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

SECTION = re.compile(r"^## `(\w+)(?:\(\w+\))?`$")
ROW = re.compile(r"^\| (`\w+`[^|]*?) \| `(\(.*?\))")


def documented_signatures() -> list[tuple[str, str, str]]:
    """(class, method, arguments) of every row in the method tables of docs/api.md."""
    found, owner = [], ""
    for line in (ROOT / "docs" / "api.md").read_text().splitlines():
        if section := SECTION.match(line):
            owner = section[1]
        elif line.startswith("## "):
            owner = ""
        elif owner and (row := ROW.match(line)):
            found += [(owner, method, row[2]) for method in re.findall(r"`(\w+)`", row[1])]
    return found


def arguments(text: str) -> list[tuple[str, object]]:
    """The names and defaults in `(a, b=None, **kwargs)`, without the last."""
    definition = ast.parse(f"def f{text}: ...").body[0]
    assert isinstance(definition, ast.FunctionDef)
    args = definition.args
    defaults = [ast.literal_eval(default) for default in args.defaults]
    required = len(args.args) - len(defaults)
    return [(a.arg, defaults[i - required] if i >= required else ...) for i, a in enumerate(args.args)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_leads_to_a_file(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_python_example_is_python(document: Path) -> None:
    for example in re.findall(r"^```py(?:thon)?\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE):
        compile(example, str(document), "exec")


def test_the_method_tables_are_found() -> None:
    assert len(documented_signatures()) > 20


@pytest.mark.parametrize(("owner", "method", "text"), documented_signatures(), ids=lambda value: value[:40])
def test_every_documented_method_takes_what_is_documented(owner: str, method: str, text: str) -> None:
    parameters = inspect.signature(getattr(getattr(lorry, owner), method)).parameters.values()
    real = [(p.name, ... if p.default is p.empty else p.default) for p in parameters if p.name != "self"]
    expected = arguments(text)
    assert real[: len(expected)] == expected
    assert ("**" in text) <= any(p.kind is p.VAR_KEYWORD for p in parameters)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_module_that_is_to_be_run_is_there(document: Path) -> None:
    for name in re.findall(r"python -m\s+([\w.]+)", document.read_text()):
        path = ROOT / name.replace(".", "/")
        assert name == "lorry" or path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_that_is_named_is_there(document: Path) -> None:
    known = {
        name
        for path in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    named = set(re.findall(r"`(test_\w+)`", document.read_text()))
    assert named <= known, named - known
