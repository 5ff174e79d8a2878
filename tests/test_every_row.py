"""Files as every program writes them, on small models of each architecture, from loading to converting and back."""

from __future__ import annotations

from pathlib import Path

import pytest

import lorry
from row_files import ROWS
from rows import Changes, Row
from walks import check_there_and_back, models_of, walk

OMI = (
    "sd",
    "sdxl",
    "StableCascadePriorPipeline",
    "sd3",
    "flux",
    "ChromaPipeline",
    "HiDreamImagePipeline",
    "HunyuanVideoPipeline",
    "PixArtAlphaPipeline",
)
"""Pipelines whose layers the Open Model Initiative has names for."""


@pytest.mark.parametrize("name", ROWS)
def test_a_file_acts_leaves_no_trace_and_is_converted(name: str, tmp_path: Path) -> None:
    row: Row = ROWS[name]
    pipe = lorry.attach(row.build())
    tensors, changes = row.make(pipe)
    path = row.write(tensors, tmp_path)
    report = walk(pipe, path, changes)
    assert (report.dialect, report.applied, report.key_count) == (row.dialect, len(tensors), len(tensors))
    found = check_there_and_back(path, row.dialect, tmp_path, models_of(pipe))
    assert found == expected_carriers(row, changes)


def expected_carriers(row: Row, changes: Changes) -> set[str]:
    """The dialects that can carry a file of LoRAs."""
    has_text = any(part.startswith("text_encoder") for part in changes)
    has_alpha = row.scale != 1 or any(part.alpha for part in row.parts)
    most = {"kohya", "onetrainer", "diffusers", "peft", "comfyui", "dotted-kohya"}
    without_text = set() if has_text else {"lycoris"}
    without_alpha = set() if has_alpha else {"lora-layers"}
    omi = {"omi"} if row.pipe in OMI else set()
    return (omi | most | without_text | without_alpha | set(row.more)) - set(row.less)
