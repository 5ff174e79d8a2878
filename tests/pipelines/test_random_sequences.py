"""Random sequences of everything that users do to whole pipelines, in every dtype that these are run in."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from pipelines.machine import run_sequence

SEQUENCES = 5
"""Of each kind in each dtype; `scripts/fuzz/pipelines.py` does as many as one likes."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """diffusers warns at each cast."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["sd", "sdxl", "flux", "wan"])
def test_whatever_is_done_to_a_pipeline_it_computes_what_an_account_of_it_says(
    kind: str, dtype: torch.dtype
) -> None:
    count: Counter[str] = Counter()
    for seed in range(SEQUENCES):
        count += run_sequence(kind, dtype, seed)
    assert count["done"] > count["refused"] > 0, "these sequences do too little"
