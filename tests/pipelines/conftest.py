"""Adapter files for the tiny pipelines, written once by diffusers and PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import oracle


class Files:
    """Folders as diffusers' `save_lora_weights` writes them, alpha in the metadata: two adapters for each family."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, family: str, name: str = "a", **changes: int | bool) -> Path:
        """Adapter "a" has rank 4 and alpha 6, "b" rank 3 and alpha 2; `changes` go to `oracle.lora`."""
        rank, alpha, seed = (4, 6, 1) if name == "a" else (3, 2, 2)
        arguments = {"rank": rank, "alpha": alpha, "seed": seed} | changes
        folder = self._folder / "-".join([family, name, *(f"{k}{v}" for k, v in changes.items())])
        if not folder.exists():
            oracle.saved_by_diffusers(family, oracle.lora(family, **arguments), folder)
        return folder


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="session", autouse=True)
def largest_errors() -> Iterator[None]:
    """Show the largest differences from diffusers and PEFT at the end of a run with `-s`."""
    yield
    print({name: f"{error:.1e}" for name, error in oracle.worst.items()})  # noqa: T201
