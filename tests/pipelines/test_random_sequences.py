"""Random sequences of everything that users do to whole pipelines, in every dtype that these are run in."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from hypothesis.stateful import run_state_machine_as_test

from pipelines.clean import Kind
from pipelines.machine import machine_of, settings_for

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
    kind: Kind, dtype: torch.dtype
) -> None:
    machine = machine_of(kind, dtype)
    run_state_machine_as_test(machine, settings=settings_for(SEQUENCES, 15))
    assert machine.count["done"] > machine.count["refused"] > 0, "these sequences do too little"
