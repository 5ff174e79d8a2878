"""`bind`: what lands where, what is refused, and the report that accounts for every key."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from lorry.adapters import Adapter, Entry, Ignored
from lorry.algebra import Delta, LoraDelta
from lorry.binding import LoadReport, Plan, bind, weight_shape
from lorry.binding.draft import IDLE
from lorry.errors import BindingError, LorryError, NothingAppliedError, ShapeMismatchError, UnknownTargetError
from lorry.names import DENOISER, Target
from models import as_adapter, carriers, random_delta, random_deltas, tiny_text_encoder, tiny_unet


def model() -> nn.Module:
    """Two linear layers unlike each other, a 1x1, a 3x3 and a grouped convolution, and a layer that carries nothing."""
    return nn.Sequential(
        *(
            nn.Linear(5, 7),
            nn.Linear(3, 4),
            nn.Conv2d(5, 7, 1),
            nn.Conv2d(4, 6, 3),
            nn.Conv2d(4, 6, 3, groups=2),
        ),
        nn.GroupNorm(1, 6),
        nn.SiLU(),
    )


def adapter(*targets: tuple[Target, Delta], **kwargs: Any) -> Adapter:
    entries = [
        Entry(target, delta, (f"{target}.down", f"{target}.up", f"{target}.alpha"))
        for target, delta in targets
    ]
    return Adapter(tuple(entries), "test", **kwargs)


def unet(path: str, flat: bool = False) -> Target:
    return Target("unet", path, flat)


def check_sum(report: LoadReport) -> None:
    """Raise where the report forgets a key or counts one twice."""
    parts = report.applied, len(report.ignored), len(report.unknown), report.mismatched_keys
    assert sum(parts) == report.key_count, parts


def test_every_layer_of_a_unet_and_a_text_encoder_is_planned_and_counted() -> None:
    models = {"unet": tiny_unet(), "text_encoder": tiny_text_encoder()}
    deltas = {name: random_deltas(part, 1) for name, part in models.items()}
    both = Adapter(
        (*as_adapter(deltas["unet"]).entries, *as_adapter(deltas["text_encoder"], "text_encoder").entries),
        "test",
    )
    plan = bind(both, models)
    assert {name: dict(part) for name, part in plan.deltas.items()} == deltas
    assert plan.report.targets == sum(len(part) for part in deltas.values())
    assert plan.report.applied == plan.report.key_count == 2 * plan.report.targets
    check_sum(plan.report)
    assert {c.component: c.targets for c in plan.report.components} == {n: len(d) for n, d in deltas.items()}


def test_binding_changes_nothing_in_the_model() -> None:
    part = tiny_unet()
    before = {path: (type(module), dict(vars(module))) for path, module in part.named_modules()}
    bind(as_adapter(random_deltas(part)), {"unet": part})
    assert {path: (type(module), dict(vars(module))) for path, module in part.named_modules()} == before


@pytest.mark.parametrize(
    ("path", "shape"), [("0", (7, 5, 1, 1)), ("2", (7, 5)), ("2", (7, 5, 1, 1)), ("4", (6, 2, 3, 3))]
)
def test_a_delta_is_planned_in_the_shape_of_the_weight_it_is_for(path: str, shape: tuple[int, ...]) -> None:
    part = model()
    plan = bind(adapter((unet(path), random_delta(shape))), {"unet": part})
    assert plan.deltas["unet"][path].shape == weight_shape(part.get_submodule(path))


@pytest.mark.parametrize(
    ("path", "shape", "message"),
    [
        ("0", (5, 7), r"`0`: the delta is \(5, 7\), the weight is \(7, 5\)"),
        ("0", (7, 5, 3, 3), r"the delta is \(7, 5, 3, 3\), the weight is \(7, 5\)"),
        ("3", (6, 4), r"the delta is \(6, 4\), the weight is \(6, 4, 3, 3\)"),
        ("4", (6, 4, 3, 3), r"the delta is \(6, 4, 3, 3\), the weight is \(6, 2, 3, 3\)"),
        ("5", (6, 6), r"`5`: the delta is \(6, 6\), the weight is \(6,\)"),
        ("6", (6, 6), r"`6`: the delta is \(6, 6\), the module cannot carry one"),
    ],
)
def test_a_delta_of_another_shape_is_refused_with_both_shapes(
    path: str, shape: tuple[int, ...], message: str
) -> None:
    good = (unet("1"), random_delta((4, 3)))
    both = adapter(good, (unet(path), random_delta(shape)))
    with pytest.raises(ShapeMismatchError, match=message):
        bind(both, {"unet": model()})
    plan = bind(both, {"unet": model()}, strict=False)
    assert list(plan.deltas["unet"]) == ["1"]
    assert plan.report.mismatched_keys == 3
    check_sum(plan.report)


def test_a_module_that_the_model_does_not_have_is_refused_with_the_nearest_name() -> None:
    part = tiny_unet()
    deltas = {"conv_in": random_delta((8, 4, 3, 3)), "conv_inn": random_delta((8, 4, 3, 3))}
    with pytest.raises(
        UnknownTargetError,
        match=r"(?s)2 of 4 keys .* \(unet\): unet\.conv_inn\.lora_A, .*Did you mean 'conv_in'\?.*`strict=False`",
    ):
        bind(as_adapter(deltas), {"unet": part})
    plan = bind(as_adapter(deltas), {"unet": part}, strict=False)
    assert plan.report.unknown == ("unet.conv_inn.lora_A", "unet.conv_inn.lora_B")
    check_sum(plan.report)


def test_a_key_that_the_dialect_could_not_read_is_refused() -> None:
    one = adapter((unet("0"), random_delta((7, 5))), unknown=("0.mystery",))
    with pytest.raises(UnknownTargetError, match=r"1 of 4 keys .*0\.mystery"):
        bind(one, {"unet": model()})
    check_sum(bind(one, {"unet": model()}, strict=False).report)


@pytest.mark.parametrize(
    "target",
    [unet("encoder.layer"), unet("6"), unet("1"), Target("text_encoder", "embeddings.token_embedding")],
)
def test_a_layer_of_zeros_that_has_no_place_is_ignored_with_the_reason(target: Target) -> None:
    idle = LoraDelta(torch.randn(2, 5), torch.zeros(7, 2))
    plan = bind(adapter((unet("0"), random_delta((7, 5))), (target, idle)), {"unet": model()})
    assert list(plan.deltas["unet"]) == ["0"]
    assert [item.reason for item in plan.report.ignored] == [IDLE] * 3
    check_sum(plan.report)
    with pytest.raises(NothingAppliedError):
        bind(adapter((target, idle)), {"unet": model()})


@pytest.mark.parametrize("target", [unet("encoder.layer"), unet("1")])
def test_a_header_does_not_tell_whether_a_layer_is_of_zeros(target: Target) -> None:
    outline = LoraDelta(torch.empty(2, 5, device="meta"), torch.empty(7, 2, device="meta"))
    with pytest.raises(LorryError, match=r"no place|does not fit"):
        bind(adapter((unet("0"), random_delta((7, 5))), (target, outline)), {"unet": model()})


@pytest.mark.parametrize("strict", [True, False])
def test_a_file_of_which_nothing_fits_is_refused(strict: bool) -> None:
    stranger = adapter((unet("encoder.layer"), random_delta((7, 5))))
    with pytest.raises(NothingAppliedError, match="a state dict"):
        bind(stranger, {"unet": model()}, strict=strict)


@pytest.mark.parametrize("strict", [True, False])
def test_a_file_with_no_deltas_is_refused(strict: bool) -> None:
    empty = Adapter((), "test", ignored=(Ignored("position_ids", "a buffer"),))
    with pytest.raises(NothingAppliedError, match="Nothing of a state dict can be applied"):
        bind(empty, {"unet": model()}, strict=strict)


def test_a_file_for_missing_components_only_is_refused() -> None:
    text = adapter((Target("text_encoder", "0"), random_delta((7, 5))))
    with pytest.raises(NothingAppliedError, match="the pipeline has no text_encoder loaded"):
        bind(text, {"unet": model(), "text_encoder": None})


def test_keys_for_a_component_that_is_not_loaded_are_ignored_and_reported() -> None:
    both = adapter((unet("0"), random_delta((7, 5))), (Target("text_encoder", "0"), random_delta((7, 5))))
    report = bind(both, {"unet": model(), "text_encoder": None}).report
    assert {item.reason for item in report.ignored} == {"the pipeline has no text_encoder loaded"}
    assert len(report.ignored) == 3
    check_sum(report)


def test_keys_for_a_component_that_the_pipeline_has_no_place_for_are_unknown() -> None:
    both = adapter((unet("0"), random_delta((7, 5))), (Target("text_encoder_2", "0"), random_delta((9, 9))))
    with pytest.raises(UnknownTargetError, match="3 of 6 keys"):
        bind(both, {"unet": model(), "text_encoder": model()})
    report = bind(both, {"unet": model()}, strict=False).report
    assert len(report.unknown) == 3
    check_sum(report)


@pytest.mark.parametrize("name", ["unet", "transformer", "prior"])
def test_a_file_that_does_not_name_the_denoiser_finds_the_pipelines(name: str) -> None:
    plan = bind(
        adapter((Target(DENOISER, "0"), random_delta((7, 5)))), {name: model(), "text_encoder": model()}
    )
    assert list(plan.deltas) == [name]


# --- one module, two spellings ------------------------------------------------------------------------------------


def twice(first: Delta, second: Delta) -> Adapter:
    return Adapter(
        (
            Entry(Target("unet", "mid_block.resnets.0.conv1"), first, ("dotted",)),
            Entry(Target("unet", "middle_block_0_in_layers_2", flat=True), second, ("flat",)),
        ),
        "test",
    )


SHAPE = (16, 16, 3, 3)


def test_two_spellings_of_one_module_with_equal_tensors_are_taken_once() -> None:
    plan = bind(twice(random_delta(SHAPE, alpha=2.0), random_delta(SHAPE, alpha=2.0)), {"unet": tiny_unet()})
    assert list(plan.deltas["unet"]) == ["mid_block.resnets.0.conv1"]
    assert plan.report.ignored == (Ignored("flat", "the same tensors as dotted"),)
    check_sum(plan.report)


@pytest.mark.parametrize(
    "other",
    [
        random_delta(SHAPE, seed=9, alpha=2.0),
        random_delta(SHAPE, alpha=1.0),
        random_delta(SHAPE, alpha=2.0, rank_stabilised=True),
        random_delta(SHAPE, rank=2, alpha=2.0),
        random_delta(SHAPE, alpha=2.0, tucker=True),
    ],
    ids=["tensors", "alpha", "rank-stabilised", "rank", "tucker"],
)
@pytest.mark.parametrize("strict", [True, False])
def test_two_spellings_of_one_module_that_differ_are_refused(other: Delta, strict: bool) -> None:
    with pytest.raises(
        BindingError, match=r"`unet\.mid_block\.resnets\.0\.conv1` is named twice .* dotted and by flat"
    ):
        bind(twice(random_delta(SHAPE, alpha=2.0), other), {"unet": tiny_unet()}, strict=strict)


# --- the report ---------------------------------------------------------------------------------------------------


def plan_of_everything() -> Plan:
    mixed = adapter(
        (unet("0"), random_delta((7, 5), alpha=1.5)),
        (unet("1"), random_delta((4, 3), rank=2)),
        (unet("3"), random_delta((6, 4))),
        (Target("text_encoder", "0"), random_delta((7, 5))),
        (unet("stranger"), random_delta((7, 5))),
        ignored=(Ignored("position_ids", "a buffer"),),
        unknown=("mystery",),
    )
    return bind(mixed, {"unet": model(), "text_encoder": None}, strict=False)


def test_the_parts_of_a_report_sum_to_the_keys_of_the_file() -> None:
    report = plan_of_everything().report
    check_sum(report)
    assert (report.applied, len(report.ignored), len(report.unknown), report.mismatched_keys) == (6, 4, 4, 3)


def test_a_report_prints_what_was_done_and_what_was_not() -> None:
    lines = str(plan_of_everything()).splitlines()
    assert lines[0] == (
        "a state dict: test, 6 of 17 keys applied to 2 targets, 4 ignored, 4 unknown, 3 of a wrong shape"
    )
    assert (
        lines[1]
        .strip()
        .startswith("unet: 2 targets from 6 keys, LoRA rank 2 to 3, scale 0.5 to 1 (from rank), ")
    )
    text = "\n".join(lines)
    for part in (
        "ignored, a buffer: position_ids",
        "unknown: mystery",
        "`3`: the delta is (6, 4), the weight is",
    ):
        assert part in text


def test_a_report_names_the_sources_of_scales() -> None:
    one = adapter((unet("0"), random_delta((7, 5), alpha=1.5)))
    one = dataclasses.replace(
        one, entries=(dataclasses.replace(one.entries[0], scale_source="alpha tensor"),)
    )
    assert "scale 0.5 (from alpha tensor)" in str(bind(one, {"unet": model()}))


# --- which modules carry ------------------------------------------------------------------------------------------


def test_the_shape_of_a_weight_is_told_by_the_module_and_not_by_its_parameter() -> None:
    packed = nn.Linear(5, 7)
    packed.weight = nn.Parameter(torch.zeros(18, 1, dtype=torch.uint8), requires_grad=False)
    assert weight_shape(packed) == (7, 5)
    assert weight_shape(nn.Conv2d(4, 6, (3, 1), groups=2)) == (6, 2, 3, 1)
    assert weight_shape(nn.LayerNorm(4)) == (4,)
    assert weight_shape(nn.Conv1d(4, 6, 3)) == (6, 4, 3)
    assert weight_shape(nn.SiLU()) is None
    assert weight_shape(nn.Embedding(4, 6)) == (4, 6)
    packed_tokens = nn.Embedding(4, 6)
    packed_tokens.weight = nn.Parameter(torch.zeros(12, 1, dtype=torch.uint8), requires_grad=False)
    assert weight_shape(packed_tokens) is None


def test_every_weight_of_a_unet_that_carries_has_the_shape_that_is_told() -> None:
    for path, module in carriers(tiny_unet()).items():
        assert module.get_parameter("weight").shape == weight_shape(module), path
