"""A file's module may be a part of a model's, or several: each gets what it has in the file's own layout."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from lorry.adapters import Adapter, Entry
from lorry.algebra import (
    BoftDelta,
    Delta,
    DoraDelta,
    FullDelta,
    LokrDelta,
    LoraDelta,
    PartsDelta,
    StackedDelta,
)
from lorry.binding import LoadReport, Plan, bind, weight_shape
from lorry.binding.draft import equal
from lorry.errors import ShapeMismatchError, UnknownTargetError, UnsupportedAdapterError
from lorry.names import Target
from models import random_delta, tiny_flux_transformer, tiny_sd3_transformer, tiny_unet

WIDTH = 32
"""Of the tiny Flux: 2 heads of 16."""


def flat(path: str) -> Target:
    return Target("denoiser", path.replace(".", "_"), flat=True)


def adapter(*entries: tuple[Target | str, Delta]) -> Adapter:
    named = [(t if isinstance(t, Target) else Target("denoiser", t), delta) for t, delta in entries]
    return Adapter(
        tuple(Entry(target, delta, (f"{target}.down", f"{target}.up")) for target, delta in named), "test"
    )


def planned(model: nn.Module, *entries: tuple[Target | str, Delta], **kwargs: Any) -> dict[str, Delta]:
    return dict(bind(adapter(*entries), {"transformer": model}, **kwargs).deltas["transformer"])


def double(delta: Delta | None, base: Tensor | None = None) -> Tensor:
    assert delta is not None
    return delta.weight(None if base is None else base.double(), torch.float64)


def check_sum(report: LoadReport) -> None:
    parts = report.applied, len(report.ignored), len(report.unknown), report.mismatched_keys
    assert sum(parts) == report.key_count, parts


SINGLE = "single_blocks.1.linear1"
PARTS = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")


@pytest.mark.parametrize("spelling", [SINGLE, flat(SINGLE)], ids=["dotted", "flattened"])
def test_a_fused_layer_of_a_file_is_cut_into_the_models_unequal_ones(spelling: Target | str) -> None:
    model = tiny_flux_transformer()
    delta = random_delta((3 * WIDTH + 4 * WIDTH, WIDTH), alpha=2.0)
    found = planned(model, (spelling, delta))
    assert list(found) == [f"single_transformer_blocks.1.{part}" for part in PARTS]
    whole = torch.cat([double(part) for part in found.values()])
    assert torch.equal(whole, double(delta))
    for part in found.values():
        assert isinstance(part, LoraDelta)
        assert part.down is delta.down
        assert (part.alpha, part.rank) == (2.0, 3)


def test_the_report_counts_a_files_keys_once_and_the_models_targets_each() -> None:
    plan = bind(
        adapter((SINGLE, random_delta((7 * WIDTH, WIDTH))), ("img_in", random_delta((WIDTH, 16)))),
        {"transformer": tiny_flux_transformer()},
    )
    assert (plan.report.applied, plan.report.key_count, plan.report.targets) == (4, 4, 5)
    check_sum(plan.report)


@pytest.mark.parametrize("number", range(4))
def test_a_numbered_part_of_a_fused_layer_is_the_models_layer_of_that_part(number: int) -> None:
    path = f"single_transformer_blocks.1.{PARTS[number]}"
    model = tiny_flux_transformer()
    delta = random_delta(weight_shape(model.get_submodule(path)) or ())
    assert planned(model, (f"{SINGLE}.{number}", delta)) == {path: delta}
    assert bind(
        adapter((f"{SINGLE}.4", delta), (SINGLE + ".0", random_delta((WIDTH, WIDTH)))),
        {"transformer": model},
        strict=False,
    ).report.unknown


def test_exchanged_halves_exchange_rows_and_leave_down_alone() -> None:
    delta = random_delta((2 * WIDTH, WIDTH))
    bias = FullDelta(torch.arange(2.0 * WIDTH))
    both = PartsDelta(delta, bias)
    found = planned(tiny_flux_transformer(), ("final_layer.adaLN_modulation.1", both))["norm_out.linear"]
    shift, scale = double(delta).chunk(2)
    assert torch.equal(double(found.part("weight")), torch.cat([scale, shift]))
    assert torch.equal(double(found.part("bias")), torch.cat([*bias.diff.double().chunk(2)][::-1]))
    inner = found.part("weight")
    assert isinstance(inner, LoraDelta)
    assert inner.down is delta.down


def test_only_the_last_block_of_sd3_has_its_context_halves_exchanged() -> None:
    model = tiny_sd3_transformer()
    name = "joint_blocks.{}.context_block.adaLN_modulation.1"
    first, last = random_delta((6 * 16, 16)), random_delta((2 * 16, 16))
    found = planned(model, (name.format(0), first), (name.format(1), last))
    assert found["transformer_blocks.0.norm1_context.linear"] is first
    shift, scale = double(last).chunk(2)
    assert torch.equal(double(found["transformer_blocks.1.norm1_context.linear"]), torch.cat([scale, shift]))


def test_a_family_that_the_border_cuts_through_has_the_same_numbers() -> None:
    delta = LokrDelta(w1=torch.randn(2, 4), w2=torch.randn(3 * WIDTH // 2, WIDTH // 4))
    found = planned(tiny_flux_transformer(), ("double_blocks.0.img_attn.qkv", delta))
    assert torch.equal(torch.cat([double(part) for part in found.values()]), double(delta))


@pytest.mark.parametrize(
    "delta",
    [
        BoftDelta(torch.randn(1, 16, 6, 6)),
        DoraDelta(random_delta((3 * WIDTH, WIDTH)), torch.rand(1, WIDTH), on_input=True),
    ],
    ids=["BOFT", "DoRA"],
)
def test_a_family_that_needs_the_whole_base_gets_it_from_all_the_layers(delta: Delta) -> None:
    model = tiny_flux_transformer()
    found = planned(model, ("double_blocks.0.img_attn.qkv", delta))
    assert list(found) == [Q, K, V]
    base = torch.cat([model.get_parameter(f"{path}.weight").detach() for path in found])
    parts = [
        part.completed(lambda path: model.get_parameter(f"{path}.weight").detach()) for part in found.values()
    ]
    assert torch.equal(torch.cat([part.weight() for part in parts]), delta.weight(base))
    with pytest.raises(UnsupportedAdapterError, match=rf"several layers together \({Q}, {K}, {V}\)"):
        found[Q].weight(base[:WIDTH])


def test_a_fused_delta_of_a_wrong_size_is_refused_with_the_size_of_all_parts() -> None:
    with pytest.raises(ShapeMismatchError, match=r"the delta is \(95, 32\), the weight is \(96, 32\)"):
        planned(tiny_flux_transformer(), ("double_blocks.0.txt_attn.qkv", random_delta((95, 32))))


# --- a model that fuses what the file keeps apart --------------------------------------------------------------------


def fused_flux() -> Any:
    model = tiny_flux_transformer()
    model.fuse_qkv_projections()
    return model


Q, K, V = (f"transformer_blocks.0.attn.to_{x}" for x in "qkv")
QKV = "transformer_blocks.0.attn.to_qkv"


def test_separate_layers_of_a_file_are_stacked_into_the_models_fused_one() -> None:
    q, v = (
        random_delta((WIDTH, WIDTH), 1, rank=2, alpha=2.0),
        random_delta((WIDTH, WIDTH), 2, rank=5, alpha=1.0),
    )
    found = planned(fused_flux(), (Q, q), (V, v))
    assert list(found) == [QKV]
    expected = torch.cat([double(q), torch.zeros(WIDTH, WIDTH), double(v)])
    torch.testing.assert_close(double(found[QKV]), expected, rtol=1e-12, atol=0)
    pair = found[QKV].low_rank(torch.float64)
    assert pair is not None
    assert pair.rank == 7
    torch.testing.assert_close(pair.up @ pair.down * pair.scale, expected)


def test_what_needs_all_rows_of_q_k_and_v_is_put_on_the_layer_that_has_them_all() -> None:
    delta = DoraDelta(random_delta((3 * WIDTH, WIDTH)), torch.rand(1, WIDTH), on_input=True)
    name = "double_blocks.0.img_attn.qkv"
    assert planned(fused_flux(), (name, delta)) == {QKV: delta}


def test_a_fused_layer_of_a_file_meets_a_fused_one_of_the_model() -> None:
    delta = random_delta((3 * WIDTH, WIDTH))
    found = planned(fused_flux(), ("double_blocks.0.img_attn.qkv", delta))
    assert torch.equal(double(found[QKV]), double(delta))


def test_the_report_of_stacked_layers_has_the_files_ranks_and_one_target() -> None:
    plan = bind(
        adapter((Q, random_delta((WIDTH, WIDTH), rank=2)), (K, random_delta((WIDTH, WIDTH), rank=5))),
        {"transformer": fused_flux()},
    )
    (part,) = plan.report.components
    assert (part.targets, part.keys, part.ranks, part.families) == (1, 4, (2, 5), ("LoRA",))
    check_sum(plan.report)


def test_a_magnitude_stays_with_its_rows() -> None:
    model = fused_flux()
    dora = DoraDelta(random_delta((WIDTH, WIDTH), 4), torch.rand(WIDTH) + 0.5)
    found = planned(model, (K, dora))[QKV]
    base = model.get_submodule(QKV).weight.detach()
    expected = torch.zeros(3 * WIDTH, WIDTH, dtype=torch.float64)
    expected[WIDTH : 2 * WIDTH] = double(dora, base[WIDTH : 2 * WIDTH])
    assert torch.equal(double(found, base), expected)


def test_after_unfusing_the_layers_are_addressed_by_themselves_again() -> None:
    model = fused_flux()
    model.unfuse_qkv_projections()
    assert list(planned(model, (Q, random_delta((WIDTH, WIDTH))))) == [Q]


def test_a_unet_keeps_its_fused_layer_when_it_is_unfused_and_computes_without_it() -> None:
    unet = tiny_unet()
    q = next(path for path, _ in unet.named_modules() if path.endswith("attn1.to_q"))
    entry = Entry(Target("unet", q), random_delta(weight_shape(unet.get_submodule(q)) or ()), ("down", "up"))
    fused = q.replace("to_q", "to_qkv")
    unet.fuse_qkv_projections()
    assert list(bind(Adapter((entry,), "test"), {"unet": unet}).deltas["unet"]) == [fused]
    unet.unfuse_qkv_projections()
    assert fused in dict(unet.named_modules())
    assert list(bind(Adapter((entry,), "test"), {"unet": unet}).deltas["unet"]) == [q]


# --- two spellings of one layer ---------------------------------------------------------------------------------------


def test_a_fused_layer_and_its_own_parts_beside_it_are_one() -> None:
    delta = random_delta((3 * WIDTH, WIDTH))
    q = LoraDelta(delta.down, delta.up[:WIDTH])
    plan: Plan = bind(
        adapter(("double_blocks.0.img_attn.qkv", delta), (Q, q)), {"transformer": tiny_flux_transformer()}
    )
    assert list(plan.deltas["transformer"]) == [Q, K, V]
    assert [item.reason for item in plan.report.ignored] == [
        "the same tensors as denoiser.double_blocks.0.img_attn.qkv.down"
    ] * 2
    check_sum(plan.report)


def test_a_fused_layer_and_other_parts_beside_it_are_refused() -> None:
    delta, q = random_delta((3 * WIDTH, WIDTH)), random_delta((WIDTH, WIDTH), 5)
    with pytest.raises(
        UnknownTargetError, match=r"attn\.to_q` is named twice in the file, by .*qkv\.down and by .*to_q"
    ):
        planned(tiny_flux_transformer(), ("double_blocks.0.img_attn.qkv", delta), (Q, q))


def test_the_order_of_a_files_layers_changes_no_bit() -> None:
    model = fused_flux()
    entries = [
        (f"transformer_blocks.0.attn.{name}", random_delta((WIDTH, WIDTH), n, alpha=float(n + 1)))
        for n, name in enumerate(("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj"))
    ]
    one, other = planned(model, *entries), planned(model, *entries[::-1])
    assert one.keys() == other.keys()
    for path, delta in one.items():
        assert torch.equal(double(delta), double(other[path]))
        pairs = delta.low_rank(), other[path].low_rank()
        assert pairs[0] is not None
        assert pairs[1] is not None
        assert torch.equal(pairs[0].up, pairs[1].up)
        assert torch.equal(pairs[0].down, pairs[1].down)


ATTENTION = "transformer_blocks.0.attn"
FUSED_NAMES = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}


@pytest.mark.parametrize("name", FUSED_NAMES)
@pytest.mark.parametrize("spelling", [str, flat], ids=["dotted", "flattened"])
def test_a_file_of_a_model_that_was_fused_fits_one_that_is_not(name: str, spelling: Any) -> None:
    parts = FUSED_NAMES[name]
    delta = random_delta((len(parts) * WIDTH, WIDTH), alpha=2.0)
    found = planned(tiny_flux_transformer(), (spelling(f"{ATTENTION}.{name}"), delta))
    assert list(found) == [f"{ATTENTION}.{part}" for part in parts]
    assert torch.equal(torch.cat([double(part) for part in found.values()]), double(delta))


@pytest.mark.parametrize("spelling", [str, flat], ids=["dotted", "flattened"])
def test_to_out_alone_is_the_layer_in_it(spelling: Any) -> None:
    delta = random_delta((WIDTH, WIDTH))
    assert list(planned(tiny_flux_transformer(), (spelling(f"{ATTENTION}.to_out"), delta))) == [
        f"{ATTENTION}.to_out.0"
    ]


@pytest.mark.parametrize("idle_first", [True, False])
def test_layers_that_a_fused_one_leaves_unused_are_ignored(idle_first: bool) -> None:
    fused = random_delta((3 * WIDTH, WIDTH))
    idle = LoraDelta(torch.ones(2, WIDTH), torch.zeros(WIDTH, 2), None, None)
    entries = [(f"{ATTENTION}.to_qkv", fused), (f"{ATTENTION}.to_k", idle)]
    plan = bind(
        adapter(*(entries[::-1] if idle_first else entries)), {"transformer": tiny_flux_transformer()}
    )
    whole = torch.cat([double(plan.deltas["transformer"][f"{ATTENTION}.{p}"]) for p in FUSED_NAMES["to_qkv"]])
    assert torch.equal(whole, double(fused))
    assert {item.reason for item in plan.report.ignored} == {
        f"it adds nothing, beside denoiser.{ATTENTION}.to_qkv.down"
    }
    assert (plan.report.applied, len(plan.report.ignored)) == (2, 2)
    check_sum(plan.report)


def test_parts_that_were_cut_from_one_delta_are_one_again() -> None:
    with torch.device("meta"):
        model = diffusers.OvisImageTransformer2DModel(num_layers=1, num_single_layers=1)
    delta = random_delta((24576, 3072))
    up, gate = (delta.rows(((first, first + 12288),)) for first in (0, 12288))
    assert up is not None
    assert gate is not None
    names = [f"double_blocks.0.img_mlp.{name}_proj" for name in ("up", "gate")]
    found = planned(model, (names[1], gate), (names[0], up))["transformer_blocks.0.ff.net.0.proj"]
    assert equal(found, delta)
    other = random_delta((12288, 3072), seed=7)
    assert isinstance(planned(model, (names[1], other), (names[0], up)).popitem()[1], StackedDelta)
