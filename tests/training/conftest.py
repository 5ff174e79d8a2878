"""Random bases on the disk, and a folder of pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models import tiny_flux_pipeline, tiny_sd3_pipeline, tiny_sd_pipeline, tiny_sdxl_pipeline
from training.runs import pictures

PIPELINES: dict[str, Callable[[], Any]] = {
    "sd": tiny_sd_pipeline,
    "sdxl": tiny_sdxl_pipeline,
    "sd3": tiny_sd3_pipeline,
    "flux": tiny_flux_pipeline,
}


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a random pipeline by its kind; each is made once."""
    root = tmp_path_factory.mktemp("bases")

    def folder(kind: str) -> Path:
        if not (root / kind).exists():
            PIPELINES[kind]().save_pretrained(root / kind)
        return root / kind

    return folder


@pytest.fixture(scope="session")
def sd(bases: Callable[[str], Path]) -> Path:
    """The folder of a random Stable Diffusion pipeline."""
    return bases("sd")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five pictures in three shapes."""
    return pictures(tmp_path_factory.mktemp("data"))
