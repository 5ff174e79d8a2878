"""The page on formats is what its script makes of the tests' layers."""

from __future__ import annotations

import inspect
import json
import re

import diffusers
import pytest
from scripts.formats_matrix import FAMILIES, RECORD, architectures, measure
from scripts.formats_table import (
    NONE,
    OTHERS,
    PAGE,
    SAME,
    TABLES,
    UNETS,
    VIDEO_UNETS,
    WRITTEN,
    families,
    page,
)
from torch import nn


def test_the_page_is_what_the_script_makes() -> None:
    assert PAGE.read_text("utf-8") == page(), "run `python scripts/formats_table.py`"


def test_a_layer_comes_back_exactly_or_is_refused() -> None:
    rows = [line.split(" | ")[1 : 1 + len(WRITTEN)] for line in families().splitlines()[2:]]
    assert len(rows) > 20
    assert {cell for row in rows for cell in row} == {"exact", "–"}
    assert all("exact" in row for row in rows)


@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "WanTransformer3DModel"])
def test_the_record_of_an_architecture_is_what_its_files_do(name: str) -> None:
    recorded = json.loads(RECORD.read_text("utf-8"))
    assert recorded.keys() == dict(architectures()).keys()
    assert recorded[name] == measure(dict(architectures())[name])


def test_the_record_has_a_verdict_for_every_family_and_dialect() -> None:
    for found in json.loads(RECORD.read_text("utf-8")).values():
        assert list(found) == list(FAMILIES)
        assert all(list(verdicts) == WRITTEN for verdicts in found.values())
        assert all(verdicts["kohya"] != "refused" for name, verdicts in found.items() if name != "HRA")


def test_the_page_tells_of_every_denoiser_that_a_pipeline_has() -> None:
    classes = {name for name in dir(diffusers) if re.search(r"Transformer|UNet|DiT|Prior", name)}
    words: set[str] = set()
    for name in dir(diffusers):
        found = getattr(diffusers, name)
        if inspect.isclass(found) and issubclass(found, diffusers.DiffusionPipeline):
            for parameter in inspect.signature(found.__init__).parameters.values():
                words |= set(re.findall(r"\w+", str(parameter.annotation)))
    used = {
        name
        for name in classes & words
        if inspect.isclass(getattr(diffusers, name))
        and issubclass(getattr(diffusers, name), nn.Module)
        and not re.search(r"ControlNetModel|MultiControlNet|Vae$", name)
    }
    tables = {path.stem for path in TABLES.glob("*.json")}
    named = [*SAME, *OTHERS, *NONE, *UNETS, *VIDEO_UNETS]
    assert len(set(named)) == len(named)
    assert not set(named) & tables
    assert used <= {*named, *tables}
    assert set(named) <= used
