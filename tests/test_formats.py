"""The page on formats is what its script makes of the tests' layers."""

from __future__ import annotations

from scripts.formats_table import PAGE, WRITTEN, families, page


def test_the_page_is_what_the_script_makes() -> None:
    assert PAGE.read_text("utf-8") == page(), "run `python scripts/formats_table.py`"


def test_a_layer_comes_back_exactly_or_is_refused() -> None:
    rows = [line.split(" | ")[1 : 1 + len(WRITTEN)] for line in families().splitlines()[2:]]
    assert len(rows) > 20
    assert {cell for row in rows for cell in row} == {"exact", "–"}
    assert all("exact" in row for row in rows)
