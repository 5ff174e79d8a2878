"""The package as a whole: what importing it costs, and what it shows."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import subprocess
import sys

import pytest

import lorry

HEAVY = ["diffusers", "transformers", "peft", "accelerate", "typer", "rich", "matplotlib"]


def modules_after(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_importing_lorry_imports_no_heavy_package() -> None:
    assert not modules_after("import lorry") & set(HEAVY)


def test_the_heavy_packages_would_be_seen() -> None:
    assert "rich" in modules_after("import rich")


def test_public_names_are_sorted() -> None:
    assert list(lorry.__all__) == sorted(set(lorry.__all__))


@pytest.mark.parametrize("name", lorry.__all__)
def test_every_public_name_is_there_and_listed(name: str) -> None:
    assert getattr(lorry, name) is not None
    assert name in dir(lorry)


def test_no_public_name_is_left_out() -> None:
    modules = {name: getattr(value, "__module__", None) or "" for name, value in vars(lorry).items()}
    own = {name for name, module in modules.items() if module.split(".")[0] == "lorry"}
    assert {name for name in own if not name.startswith("_")} <= set(lorry.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        lorry.no_such_name  # noqa: B018


def test_the_version_is_the_installed_one() -> None:
    assert lorry.__version__ == importlib.metadata.version("lorry")


def test_the_type_marker_is_shipped() -> None:
    files = importlib.resources.files("lorry")
    assert files.joinpath("py.typed").is_file()
