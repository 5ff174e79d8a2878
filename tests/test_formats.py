"""The page on formats is what its script makes of the tests' layers."""

from __future__ import annotations

import inspect
import json
import logging
import math
import re
from typing import Any

import diffusers
import pytest
from scripts.formats_comfyui import ERROR, NOTHING, OTHER, SAME, measured
from scripts.formats_comfyui import RECORD as COMFYUI
from scripts.formats_matrix import FAMILIES, RECORD, architectures, measure
from scripts.formats_table import (
    NONE,
    OTHERS,
    PAGE,
    ROWS,
    TABLES,
    UNETS,
    WHOLE_UNETS,
    WRITTEN,
    families,
    page,
)
from scripts.formats_table import SAME as SAME_NAMES
from torch import nn

from dialects.layers import LAYERS


def test_the_page_is_what_the_script_makes() -> None:
    assert PAGE.read_text("utf-8") == page(), "run `python scripts/formats_table.py`"


def test_a_layer_comes_back_exactly_or_is_refused() -> None:
    rows = [line.split(" | ")[1 : 1 + len(WRITTEN)] for line in families().splitlines()[2:]]
    assert len(rows) > 20
    assert {cell for row in rows for cell in row} == {"exact", "–"}
    assert all("exact" in row for row in rows)


SAID_OF_COMFYUI = {
    "yes": (SAME, SAME, False),
    "`set_weight`": (SAME, SAME, False),
    "in 2-d convolutions": (SAME, SAME, False),
    "by another norm": (OTHER, OTHER, False),
    "rows by another norm": (OTHER, OTHER, False),
    "at strength 1, without a constraint or `rescale`": (SAME, OTHER, False),
    "at strength 1, with an alpha": (NOTHING, NOTHING, True),  # that without one; the other is `boft alpha 0`
    "in Flux's control files": (
        OTHER,
        OTHER,
        True,
    ),  # which have the layers' suffixes converted; others have not
    "dropped, logged": (OTHER, OTHER, True),
    "without it, logged": (OTHER, OTHER, True),
    "not with torch 2.13, logged": (NOTHING, NOTHING, True),
    "no": (NOTHING, NOTHING, True),
}
"""What a word of the page means: at strength 1, at 0.5, and whether anything is logged."""


@pytest.mark.parametrize("name", ROWS)
def test_what_is_said_of_comfyui_is_what_was_measured(name: str) -> None:
    found = json.loads(COMFYUI.read_text("utf-8"))["layers"]
    said = SAID_OF_COMFYUI[ROWS[name][2]]
    assert (found[name]["at 1.0"], found[name]["at 0.5"], "logged" in found[name]) == said


def test_the_limits_that_are_said_of_comfyuis_rotations_were_measured() -> None:
    found = json.loads(COMFYUI.read_text("utf-8"))["layers"]
    assert [found[f"oft {name}"]["at 1.0"] for name in ("constraint", "rescale")] == [OTHER, OTHER]
    assert found["boft alpha 0"] == {"at 1.0": SAME, "at 0.5": OTHER}


class Program:
    """A stand-in for `comfy.lora`: it applies differences, times a factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def load_lora(self, file: dict[str, Any], targets: dict[str, str]) -> dict[str, Any]:
        (key,) = targets
        if f"{key}.diff" not in file:
            logging.warning("not loaded")
            return {}
        return {targets[key]: file[f"{key}.diff"]}

    def calculate_weight(self, patches: list[tuple[Any, ...]], weight: Any, key: str) -> Any:
        ((strength, diff, *_),) = patches
        if math.isnan(self.factor):
            raise ValueError(key)
        return weight + self.factor * strength * diff


@pytest.mark.parametrize(
    ("layer", "factor", "verdict"),
    [
        ("full", 1.0, {"at 1.0": SAME, "at 0.5": SAME}),
        ("full", 0.5, {"at 1.0": OTHER, "at 0.5": OTHER}),
        ("full", float("nan"), {"at 1.0": ERROR, "at 0.5": ERROR}),
        ("full diff_b", 1.0, {"at 1.0": OTHER, "at 0.5": OTHER}),
        ("lora", 1.0, {"at 1.0": NOTHING, "at 0.5": NOTHING, "logged": "yes"}),
    ],
)
def test_a_program_is_measured_by_the_weights_that_it_computes(
    layer: str, factor: float, verdict: dict[str, str]
) -> None:
    assert measured(Program(factor), LAYERS[layer]()) == verdict


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
    named = [*SAME_NAMES, *OTHERS, *NONE, *UNETS, *WHOLE_UNETS]
    assert len(set(named)) == len(named)
    assert not set(named) & tables
    assert used <= {*named, *tables}
    assert set(named) <= used
