"""The page on formats is what its script makes of the tests' layers."""

from __future__ import annotations

import json

import pytest
from scripts.formats_matrix import FAMILIES, RECORD, architectures, measure
from scripts.formats_table import PAGE, WRITTEN, families, page


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
