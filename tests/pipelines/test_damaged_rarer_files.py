"""Damaged files of the rarer dialects: by position, by part, by head, without alphas; each damage is named."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lorry import attach
from lorry.errors import FormatError, LorryError, ShapeMismatchError, UnknownTargetError
from pipelines.test_damaged_files import DAMAGES as USUAL
from pipelines.test_damaged_files import halved, with_unlike_alphas
from row_files import ROWS
from row_layers import DOWN
from snapshots import check_same, snapshot
from test_special_rows import SAT, by_position, minimax_h3, sat_layers
from walks import models_of

Tensors = dict[str, Tensor]


class Made(NamedTuple):
    """A pipeline, a file for it, and the layer that is damaged."""

    pipe: Any
    tensors: Tensors
    down: str
    up: str
    alpha: str
    """Empty where the dialect has no key for it."""
    module: str
    """What the layer changes, the first of several."""


def of_row(name: str, stem: str, module: str) -> Callable[[], Made]:
    def make() -> Made:
        row = ROWS[name]
        pipe = attach(row.build())
        down, up = row.parts[0].pair
        return Made(pipe, row.make(pipe)[0], f"{stem}.{down}", f"{stem}.{up}", f"{stem}.alpha", module)

    return make


def cloneofsimo() -> Made:
    pipe, tensors, changes = by_position("unet")
    module = list(changes)[4].removesuffix(".weight")
    return Made(pipe, tensors, "unet:4:down", "unet:4:up", "", module)


def sat() -> Made:
    pipe, tensors, _ = sat_layers()
    stem = f"{SAT}.query_key_value.matrix"
    return Made(pipe, tensors, f"{stem}_A.1", f"{stem}_B.1", "", "transformer_blocks.0.attn1.to_k")


def diffsynth_h3() -> Made:
    tensors: Tensors = {}
    for stem, rows, columns in (("attn.qkv_proj", 768, 32), ("attn.out_proj", 32, 256), ("mlp.fc2", 32, 32)):
        tensors[f"blocks.0.{stem}.lora_A.default.weight"] = torch.randn(2, columns)
        tensors[f"blocks.0.{stem}.lora_B.default.weight"] = torch.randn(rows, 2)
    qkv = "blocks.0.attn.qkv_proj"
    down, up = (f"{qkv}.lora_{side}.default.weight" for side in "AB")
    return Made(minimax_h3(), tensors, down, up, f"{qkv}.alpha", "transformer_blocks.0.attn.to_q")


MAKE: Mapping[str, Callable[[], Made]] = {
    "xlabs": of_row("24 XLabs", "double_blocks.0.processor.qkv_lora1", "transformer_blocks.0.attn.to_q"),
    "attention-processors": of_row(
        "7 processors", f"unet.{DOWN}.attn2.processor.to_k_lora", f"{DOWN}.attn2.to_k"
    ),
    "onetrainer": of_row(
        "33 SD3, OneTrainer",
        "lora_transformer_transformer_blocks_0_attn_add_k_proj",
        "transformer_blocks.0.attn.add_k_proj",
    ),
    "cloneofsimo": cloneofsimo,
    "sat": sat,
    "diffsynth-h3": diffsynth_h3,
}


def renamed(tensors: Tensors, down: str, up: str, alpha: str) -> None:
    tensors[f"x{down}"] = tensors.pop(down)


def other_base(tensors: Tensors, down: str, up: str, alpha: str) -> None:
    tensors[down] = torch.cat([tensors[down], tensors[down]], dim=1)


DAMAGES = {
    **USUAL,
    "a key renamed": (renamed, UnknownTargetError, 1),
    "made for another base": (other_base, ShapeMismatchError, -1),
}
"""As of the usual dialects, but for two that go by the rarer ones' names and factors."""
BY_SHAPE: Mapping[tuple[str, str], type[LorryError]] = {("cloneofsimo", "made for another base"): FormatError}
"""Layers by position have no name but by their shapes."""


WITHOUT_ALPHAS = ("cloneofsimo", "sat")
CASES = [
    (what, dialect)
    for what, dialect in product(DAMAGES, MAKE)
    if "alpha" not in what or dialect not in WITHOUT_ALPHAS
]


@pytest.mark.parametrize(("what", "dialect"), CASES)
def test_a_damage_is_named_and_nothing_is_changed(what: str, dialect: str) -> None:
    pipe, tensors, *keys, module = MAKE[dialect]()
    damage, error, named = DAMAGES[what]
    damage(tensors, *keys)
    models = models_of(pipe)
    before = {part: snapshot(model) for part, model in models.items()}
    with pytest.raises(BY_SHAPE.get((dialect, what), error)) as caught:
        pipe.load_lora_weights(tensors)
    assert (module if named < 0 else keys[named]) in str(caught.value)
    for part, model in models.items():
        check_same(snapshot(model), before[part])


@pytest.mark.parametrize("dialect", MAKE)
def test_what_is_left_of_a_damaged_file_is_applied_on_demand_and_counted(dialect: str) -> None:
    pipe, tensors, *keys, _ = MAKE[dialect]()
    whole = pipe.load_lora_weights(tensors)
    assert (whole.dialect, whole.unknown) == (dialect, ())
    pipe.unload_lora_weights()
    halved(tensors, *keys)
    report = pipe.load_lora_weights(tensors, strict=False)
    left = set(keys) & tensors.keys()
    assert set(report.unknown) == left
    assert report.applied == whole.applied - 1 - len(left)
    assert report.applied + len(report.ignored) + len(left) == report.key_count == len(tensors)


@pytest.mark.parametrize("dialect", MAKE)
def test_a_layer_that_is_missing_altogether_leaves_the_others_as_they_are(dialect: str) -> None:
    pipe, tensors, *keys, module = MAKE[dialect]()
    models = models_of(pipe)
    plain = fused(pipe, tensors)
    left = {key: tensor for key, tensor in tensors.items() if key not in keys}
    found = fused(pipe, left)
    changed = [name for name, tensor in plain.items() if not torch.equal(tensor, found[name])]
    assert changed
    assert any(f"{module}.weight" in name for name in changed)
    assert all(torch.equal(found[name], weights(models)[name]) for name in changed)


def test_halves_of_a_fused_layer_of_sats_are_counted_one_by_one() -> None:
    pipe, tensors, _ = sat_layers()
    left = {key: t for key, t in tensors.items() if not key.endswith(("matrix_A.1", "matrix_A.2"))}
    report = pipe.load_lora_weights(left, strict=False)
    parts = f"{SAT}.query_key_value.matrix"
    assert set(report.unknown) == {f"{parts}_B.1", f"{parts}_B.2"}
    assert (report.applied, report.key_count) == (4, len(left))


@pytest.mark.parametrize("dialect", MAKE)
def test_the_order_of_keys_changes_no_bit(dialect: str) -> None:
    pipe, tensors, *_ = MAKE[dialect]()
    tensors = with_unlike_alphas(tensors)
    first = fused(pipe, {key: tensors[key] for key in sorted(tensors)})
    for seed in (1, 2):
        keys = sorted(tensors)
        random.Random(seed).shuffle(keys)
        found = fused(pipe, {key: tensors[key] for key in keys})
        assert all(torch.equal(tensor, found[name]) for name, tensor in first.items())


@pytest.mark.parametrize("dialect", [dialect for dialect in MAKE if dialect not in WITHOUT_ALPHAS])
def test_an_alpha_that_one_layer_has_is_that_layers_alone(dialect: str) -> None:
    pipe, tensors, *keys, _ = MAKE[dialect]()
    tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith(".alpha")}
    tensors[keys[2]] = torch.tensor(1.0)
    report = pipe.load_lora_weights(tensors)
    assert {scale for component in report.components for scale in component.scales} == {0.5, 1.0}


def weights(models: Mapping[str, Any]) -> Tensors:
    """Copies of all weights, by component and path."""
    return {
        f"{part}.{name}": parameter.detach().clone()
        for part, model in models.items()
        for name, parameter in model.named_parameters()
    }


def fused(pipe: Any, tensors: Tensors) -> Tensors:
    """The weights with a file fused, which is taken off again."""
    pipe.load_lora_weights(tensors)
    pipe.fuse_lora()
    found = weights(models_of(pipe))
    pipe.unload_lora_weights()
    return found


def swapped(tensors: list[Tensor]) -> None:
    tensors[8], tensors[9] = tensors[9], tensors[8]


def one_missing(tensors: list[Tensor]) -> None:
    del tensors[8]


def layer_missing(tensors: list[Tensor]) -> None:
    del tensors[2:4]


def one_transposed(tensors: list[Tensor]) -> None:
    tensors[9] = tensors[9].mT.contiguous()


def of_another_base(tensors: list[Tensor]) -> None:
    tensors[9] = torch.randn(2, tensors[9].shape[1] * 2)


def of_another_rank(tensors: list[Tensor]) -> None:
    tensors[9] = torch.randn(3, tensors[9].shape[1])


LISTS: dict[str, tuple[Callable[[list[Tensor]], None], type[LorryError], str]] = {
    "the two of a layer exchanged": (swapped, FormatError, "`9` and `8`"),
    "one missing": (one_missing, FormatError, "`13` and `12`"),
    "a layer missing": (layer_missing, FormatError, "Position 3: expected"),
    "one transposed": (one_transposed, FormatError, "`9` and `8`"),
    "made for another base": (of_another_base, FormatError, "Position 4: expected"),
    "ranks that differ": (of_another_rank, FormatError, "`9` and `8`"),
    "the last missing": (list.pop, UnknownTargetError, "16"),
}
"""{what: (how, error, what the message names)}. Where one is missing, that is the first pair whose ranks differ."""


@pytest.mark.parametrize("what", LISTS)
def test_a_damaged_list_is_refused_with_its_place_and_nothing_is_changed(what: str, tmp_path: Path) -> None:
    pipe, tensors, _ = by_position("unet")
    listed = list(tensors.values())
    damage, error, named = LISTS[what]
    damage(listed)
    torch.save(listed, tmp_path / "in.pt")
    before = snapshot(pipe.unet)
    with pytest.raises(error) as caught:
        pipe.load_lora_weights(tmp_path / "in.pt")
    assert named in str(caught.value)
    check_same(snapshot(pipe.unet), before)
