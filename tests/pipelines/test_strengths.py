"""Strengths by part of the model: what is at 0 is as if the file had not held it, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lorry
from lorry.algebra import Delta, DoraDelta, FullDelta, LoraDelta
from lorry.binding import weight_shape
from lorry.binding.kinds import kind_of
from lorry.errors import StateError
from lorry.names import Target
from lorry.patching import check_strength, find_state
from lorry.pipelines.block_weights import TABLES, block_factors
from lorry.pipelines.strengths import per_adapter
from lorry.prompts import LoraTag
from models import (
    carriers,
    random_deltas,
    tiny_flux_transformer,
    tiny_sd3_transformer,
    tiny_sd_pipeline,
    tiny_sdxl_pipeline,
    tiny_sdxl_unet,
    tiny_unet,
    unet_inputs,
)
from small import changing

SD_BLOCKS: dict[str, Any] = {
    "layers_per_block": 2,
    "block_out_channels": (4, 4, 4, 4),
    "norm_num_groups": 2,
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
}
SDXL_BLOCKS: dict[str, Any] = {
    "layers_per_block": 2,
    "block_out_channels": (4, 4, 4),
    "norm_num_groups": 2,
    "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
    "up_block_types": (*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
}


def dora(deltas: Mapping[str, Delta]) -> dict[str, Delta]:
    """The same with magnitudes: a family that acts through a copy of the weight."""
    return {
        path: DoraDelta(delta, torch.rand(delta.shape[0], *([1] * (len(delta.shape) - 1))) + 0.5)
        for path, delta in deltas.items()
        if isinstance(delta, LoraDelta)
    }


def full(deltas: Mapping[str, Delta]) -> dict[str, Delta]:
    return {path: FullDelta(delta.weight()) for path, delta in deltas.items()}


FAMILIES: dict[str, Callable[[Mapping[str, Delta]], Mapping[str, Delta]]] = {
    "lora": dict,
    "dora": dora,
    "full": full,
}


def act(
    model: nn.Module, deltas: Mapping[str, Delta], strengths: Any, component: str, *, fused: bool = False
) -> None:
    from lorry.pipelines.strengths import strength_for

    with changing(model) as (state, undo):
        state.add("toy", deltas, undo)
        state.set_active({"toy": strength_for(strengths, component, model)}, undo)
        if fused:
            state.fuse(undo)


def flux_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 16, 16),
        "encoder_hidden_states": torch.randn(1, 5, 24),
        "pooled_projections": torch.randn(1, 32),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(5, 3),
    }


def sd3_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "encoder_hidden_states": torch.randn(1, 5, 64),
        "pooled_projections": torch.randn(1, 64),
        "timestep": torch.tensor([5.0]),
    }


def output(model: nn.Module) -> Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        name = type(model).__name__
        inputs = {"FluxTransformer2DModel": flux_inputs, "SD3Transformer2DModel": sd3_inputs}
        given = inputs[name]() if name in inputs else unet_inputs(model)  # pyright: ignore[reportArgumentType]
        return model(**given).sample


CASES: list[tuple[Callable[[], nn.Module], str, str]] = [
    (tiny_unet, "unet", "down_blocks.1"),
    (tiny_unet, "unet", "up_blocks"),
    (tiny_unet, "unet", "attention"),
    (tiny_unet, "unet", "convolution"),
    (tiny_unet, "unet", "attn2"),
    (tiny_unet, "unet", "to_*"),
    (tiny_sdxl_unet, "unet", "down_blocks.1"),
    (tiny_sd3_transformer, "transformer", "transformer_blocks.0"),
    (tiny_flux_transformer, "transformer", "single_transformer_blocks.1"),
    (tiny_flux_transformer, "transformer", "feed-forward"),
]


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("build", "component", "part"), CASES, ids=[f"{c[1]} {c[2]}" for c in CASES])
def test_a_part_at_zero_is_as_if_the_file_had_not_held_it(
    build: Callable[[], nn.Module], component: str, part: str, family: str, fused: bool
) -> None:
    from lorry.binding.patterns import covers

    base = build()
    deltas = FAMILIES[family](random_deltas(base, size=0.3))
    rest = {path: delta for path, delta in deltas.items() if not covers(part, Target(component, path))}
    assert 0 < len(rest) < len(deltas)
    muted, without = copy.deepcopy(base), copy.deepcopy(base)
    act(muted, deltas, lorry.Strengths(0.7, {part: 0.0}), component, fused=fused)
    act(without, rest, 0.7, component, fused=fused)
    got = output(muted)
    assert torch.equal(got, output(without))
    assert not torch.equal(got, output(base))


def test_factors_multiply_the_strength_and_the_last_pattern_wins() -> None:
    unet = tiny_unet()
    strength = lorry.Strengths(
        0.5, {"down_blocks": 0.4, "attention": 2.0, "down_blocks.1.attentions.0": 0.0}
    ).on("unet", unet)
    assert strength.at("conv_in") == 0.5
    assert strength.at("down_blocks.1.resnets.0.conv1") == 0.2
    assert strength.at("up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q") == 1.0
    assert strength.at("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q") == 0.0


def test_components_are_parts_too() -> None:
    pipe = lorry.attach(tiny_sdxl_pipeline())
    for component in ("unet", "text_encoder", "text_encoder_2"):
        model = getattr(pipe, component)
        act(model, random_deltas(model, ends=["to_q", "q_proj"]), 1.0, component)
    parts = {"text_encoders": 0.5, "text_encoder_2": 0.25, "denoiser": 0.1}
    pipe.set_adapters("toy", lorry.Strengths(2.0, parts))
    states = {name: find_state(getattr(pipe, name)) for name in ("unet", "text_encoder", "text_encoder_2")}
    found = {
        name: {state.strengths["toy"].at(p) for p in state.adapters["toy"].deltas}
        for name, state in states.items()
        if state
    }
    assert found == {"unet": {0.2}, "text_encoder": {1.0}, "text_encoder_2": {0.5}}


def test_a_tag_of_a_prompt_is_a_strength() -> None:
    pipe = lorry.attach(tiny_sd_pipeline())
    for component in ("unet", "text_encoder"):
        act(
            getattr(pipe, component),
            random_deltas(getattr(pipe, component), ends=["to_q", "q_proj"]),
            1.0,
            component,
        )
    tag = lorry.parse_prompt("a cat <lora:toy:0.8:te=0.5>").loras[0]
    pipe.set_adapters(tag.name, tag)
    assert pipe.unet.lorry.mode("toy") == "active at 0.8"
    assert pipe.text_encoder.lorry.mode("toy") == "active at 0.5"


@pytest.mark.parametrize(
    ("strengths", "said"),
    [
        (
            lambda: lorry.Strengths(parts={"attn3": 0.5}),
            "No module .* covered by 'attn3'. Did you mean 'attn",
        ),
        (lambda: lorry.Strengths(parts={"text_encoder_2": 0.5}), "covered by 'text_encoder_2'"),
        (lambda: lorry.Strengths(parts={"attn1": float("nan")}), "attn1: expected a finite number"),
        (lambda: lorry.Strengths(scale=1e39), "the strength: expected a finite number"),
        (lambda: lorry.Strengths(scale=True), "the strength: expected a finite number"),
        (lambda: lorry.Strengths(steps=[]), "expected points by rising position"),
        (lambda: lorry.Strengths(steps=cast(Any, [1, 2])), "expected \\(position, factor\\) pairs"),
        (lambda: lorry.Strengths(steps=[(1, 0), (0, 1)]), "expected points by rising position"),
        (lambda: LoraTag("toy", blocks=(1.0, 0.0)), "This UNet takes 10 factors by block.* Got 2"),
        (lambda: LoraTag("toy", blocks="MID"), "There is no preset 'MID'.* Did you mean 'MIDD'"),
    ],
)
def test_what_makes_no_sense_is_an_error_and_changes_nothing(strengths: Callable[[], Any], said: str) -> None:
    pipe = lorry.attach(tiny_sd_pipeline())
    act(pipe.unet, random_deltas(pipe.unet, ends=["to_q"]), 0.3, "unet")
    with pytest.raises(StateError, match=said):
        pipe.set_adapters("toy", strengths())
    assert pipe.unet.lorry.mode("toy") == "active at 0.3"


# --- factors by place in a list -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "count", "places"),
    [
        (SD_BLOCKS, 26, {1: "conv_in", 2: "down_blocks.0.resnets.0", 3: "down_blocks.0.attentions.1"}),
        (SD_BLOCKS, 26, {4: "down_blocks.0.downsamplers.0", 12: "down_blocks.3.resnets.1", 13: "mid_block"}),
        (
            SD_BLOCKS,
            26,
            {14: "up_blocks.0.resnets.0", 16: "up_blocks.0.upsamplers.0", 25: "up_blocks.3.attentions.2"},
        ),
        (SD_BLOCKS, 17, {1: "down_blocks.0.attentions.0", 6: "down_blocks.2.attentions.1", 7: "mid_block"}),
        (
            SD_BLOCKS,
            17,
            {8: "up_blocks.1.attentions.0", 10: "up_blocks.1.upsamplers.0", 16: "up_blocks.3.resnets.2"},
        ),
        (
            SDXL_BLOCKS,
            20,
            {1: "conv_in", 5: "down_blocks.1.attentions.0", 10: "mid_block", 19: "up_blocks.2.resnets.2"},
        ),
        (
            SDXL_BLOCKS,
            12,
            {1: "down_blocks.1.attentions.0", 4: "down_blocks.2.attentions.1", 11: "up_blocks.1.resnets.2"},
        ),
    ],
)
def test_lists_reach_the_blocks_that_original_checkpoints_number(
    changes: dict[str, Any], count: int, places: dict[int, str]
) -> None:
    unet = tiny_unet(**changes)
    for place, block in places.items():
        factors = block_factors([float(number == place) for number in range(count)], unet)
        reached = [path for path in carriers(unet) if factors.get(path) == 1.0]
        assert any(path.startswith(block) for path in reached), reached
        assert len({TABLES[count][place]}) == 1
        everywhere = [path for path in carriers(unet) if path.startswith(f"{block}.")]
        assert set(everywhere) <= set(reached) or block == "mid_block"


def test_each_place_of_a_long_list_reaches_other_modules_and_together_they_reach_all_blocks() -> None:
    for changes, count in ((SD_BLOCKS, 26), (SDXL_BLOCKS, 20)):
        unet = tiny_unet(**changes)
        seen: list[str] = []
        for place in range(1, count):
            factors = block_factors([float(number == place) for number in range(count)], unet)
            seen += [path for path in carriers(unet) if factors.get(path) == 1.0]
        assert len(seen) == len(set(seen))
        assert set(carriers(unet)) - set(seen) == {
            "time_embedding.linear_1",
            "time_embedding.linear_2",
            "conv_out",
        }


def test_short_lists_leave_the_other_blocks_at_zero() -> None:
    factors = block_factors([1.0] * 17, tiny_unet(**SD_BLOCKS))
    assert factors["down_blocks.0.downsamplers.0.conv"] == 0.0
    assert factors["down_blocks.0.attentions.0.proj_in"] == 1.0


def test_presets_are_lists_by_name() -> None:
    unet = tiny_unet(**SD_BLOCKS)
    middle = (1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0)
    assert block_factors("MIDD", unet) == block_factors([float(number) for number in middle], unet)
    assert set(block_factors("ALL", unet).values()) == {1.0}
    assert set(block_factors("NONE", unet).values()) == {0.0}


def test_a_transformer_takes_one_number_for_the_text_encoders_and_one_for_each_block() -> None:
    flux = tiny_flux_transformer()
    factors = block_factors([9.0, 0.1, 0.2, 0.3], flux)
    assert factors["transformer_blocks.0.attn.to_q"] == 0.1
    assert factors["single_transformer_blocks.1.attn.to_q"] == 0.3
    assert "x_embedder" not in factors
    with pytest.raises(
        StateError, match=r"takes 4 factors by block: one for the text encoders, 1 for `transformer_b"
    ):
        block_factors([1.0] * 17, flux)
    with pytest.raises(StateError, match="The preset 'MIDD' is for UNets"):
        block_factors("MIDD", flux)


def test_flux_takes_the_extensions_61_numbers() -> None:
    with torch.device("meta"):
        flux = type(tiny_flux_transformer())(
            num_layers=19, num_single_layers=38, attention_head_dim=8, num_attention_heads=1
        )
    factors = block_factors([float(number) for number in range(61)], flux)
    assert factors["x_embedder"] == factors["time_text_embed.timestep_embedder.linear_1"] == 2.0
    assert factors["transformer_blocks.0.attn.to_q"] == 3.0
    assert factors["single_transformer_blocks.37.proj_out"] == 59.0
    assert factors["proj_out"] == factors["norm_out.linear"] == 60.0


def test_blocks_of_a_prompt_act_as_the_file_without_them() -> None:
    base = tiny_unet(**SD_BLOCKS)
    deltas = random_deltas(base, size=0.3)
    factors = block_factors("MIDD", base)
    muted, without = copy.deepcopy(base), copy.deepcopy(base)
    act(muted, deltas, LoraTag("toy", 0.8, blocks="MIDD"), "unet")
    act(without, {path: delta for path, delta in deltas.items() if factors.get(path) != 0.0}, 0.8, "unet")
    assert torch.equal(output(muted), output(without))


def test_every_kind_can_be_a_part() -> None:
    unet = tiny_unet()
    kinds = {kind_of(Target("unet", path)) for path in carriers(unet)}
    assert {"attention", "feed-forward", "convolution", "projection", "time"} <= kinds
    for kind in kinds:
        strength = lorry.Strengths(1.0, {kind: 0.0}).on("unet", unet)
        muted = {path for path in carriers(unet) if strength.at(path) == 0.0}
        assert muted == {path for path in carriers(unet) if kind_of(Target("unet", path)) == kind}
        assert weight_shape(unet.get_submodule(next(iter(muted)))) is not None


@pytest.mark.parametrize("one", [torch.tensor(0.5), np.array(0.5), np.float32(0.5)], ids=repr)
@pytest.mark.parametrize("two", [torch.tensor([0.5, 0.25]), np.array([0.5, 0.25]), (0.5, 0.25)], ids=repr)
def test_numbers_of_torch_and_numpy_are_numbers(one: Any, two: Any) -> None:
    assert per_adapter(["a", "b"], two) == [0.5, 0.25]
    assert [check_strength(number, "it") for number in per_adapter(["a", "b"], two)] == [0.5, 0.25]
    assert check_strength(one, "it") == 0.5


@pytest.mark.parametrize("given", [torch.tensor(True), torch.tensor([0.5]), torch.tensor(float("nan")), "1"])
def test_what_is_no_number_is_refused(given: Any) -> None:
    with pytest.raises(StateError, match="it: expected a"):
        check_strength(given, "it")
