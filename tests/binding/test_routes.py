"""Which of a pipeline's components a file means, where it names them otherwise or by another number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import Qwen3Config, Qwen3Model

from lorry.adapters import Adapter, Entry
from lorry.algebra import Delta
from lorry.binding import LoadReport, bind
from lorry.errors import ShapeMismatchError, StateError, UnknownTargetError
from lorry.names import DENOISER, Target
from models import random_delta, tiny_flux_transformer, tiny_t5_encoder, tiny_text_encoder


def adapter(*entries: tuple[Target, Delta], **kwargs: Any) -> Adapter:
    made = [Entry(target, delta, (f"{target}.down", f"{target}.up")) for target, delta in entries]
    return Adapter(tuple(made), "test", **kwargs)


def check_sum(report: LoadReport) -> None:
    parts = report.applied, len(report.ignored), len(report.unknown), report.mismatched_keys
    assert sum(parts) == report.key_count, parts


CLIP = "text_model_encoder_layers_0_self_attn_q_proj"
T5 = "encoder_block_0_layer_0_SelfAttention_q"
QWEN = "layers_0_self_attn_o_proj"


def clip(number: str = "", width: int = 32) -> tuple[Target, Delta]:
    return Target(f"text_encoder{number}", CLIP, flat=True), random_delta((width, width))


def t5(number: str) -> tuple[Target, Delta]:
    return Target(f"text_encoder{number}", T5, flat=True), random_delta((16, 24))


def tiny_qwen() -> nn.Module:
    config = Qwen3Config(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, vocab_size=8,
    )  # fmt: skip
    with torch.device("meta"):
        return Qwen3Model(config)


def flux() -> dict[str, nn.Module | None]:
    return {
        "transformer": tiny_flux_transformer(),
        "text_encoder": tiny_text_encoder(),
        "text_encoder_2": tiny_t5_encoder(),
    }


@pytest.mark.parametrize("number", ["_2", "_3", ""])
def test_a_t5_of_any_number_lands_on_the_encoder_that_is_one(number: str) -> None:
    plan = bind(adapter(t5(number)), flux())
    assert {name: list(part) for name, part in plan.deltas.items()} == {
        "text_encoder_2": ["encoder.block.0.layer.0.SelfAttention.q"]
    }


def test_encoders_of_one_kind_are_told_apart_by_their_width() -> None:
    models = {"text_encoder": tiny_text_encoder(width=32), "text_encoder_2": tiny_text_encoder(width=16)}
    plan = bind(adapter(clip("_2", width=32), clip("", width=16)), models)
    assert plan.report.targets == 2
    one_named_wrongly = bind(adapter(clip("_2", width=32)), models)
    assert list(one_named_wrongly.deltas) == ["text_encoder"]


def test_an_encoder_goes_where_the_file_says_when_it_fits_there() -> None:
    models = {"text_encoder": tiny_text_encoder(), "text_encoder_2": tiny_text_encoder()}
    assert list(bind(adapter(clip("_2")), models).deltas) == ["text_encoder_2"]


def test_two_encoders_of_a_file_never_land_on_one() -> None:
    with pytest.raises(UnknownTargetError, match="2 of 4 keys with no place"):
        bind(adapter(clip(""), clip("_2")), {"text_encoder": tiny_text_encoder()})


def test_an_encoder_that_is_not_loaded_is_ignored_under_any_number() -> None:
    models = flux() | {"text_encoder_2": None}
    report = bind(adapter(clip(""), t5("_3")), models).report
    assert {item.reason for item in report.ignored} == {"the pipeline has no text_encoder_2 loaded"}
    check_sum(report)


def test_an_encoder_that_fits_nowhere_is_refused_at_the_one_that_the_file_names() -> None:
    with pytest.raises(
        ShapeMismatchError, match=r"self_attn\.q_proj`: the delta is \(8, 8\), the weight is \(32, 32\)"
    ):
        bind(adapter(clip("", width=8)), flux())


@pytest.mark.parametrize("path", [QWEN, f"model_{QWEN}", f"model_language_model_{QWEN}"])
def test_a_language_model_is_found_with_and_without_its_roots(path: str) -> None:
    plan = bind(
        adapter((Target("text_encoder", path, flat=True), random_delta((16, 16)))),
        {"text_encoder": tiny_qwen()},
    )
    assert list(plan.deltas["text_encoder"]) == ["layers.0.self_attn.o_proj"]


# --- denoisers --------------------------------------------------------------------------------------------------------


def denoiser(component: str = DENOISER) -> tuple[Target, Delta]:
    return Target(component, "x_embedder"), random_delta((32, 16))


def two() -> dict[str, nn.Module | None]:
    return {"transformer": tiny_flux_transformer(), "transformer_2": tiny_flux_transformer()}


@pytest.mark.parametrize(
    ("source", "metadata", "expected"),
    [
        ("style.safetensors", {}, "transformer"),
        ("style_high_noise.safetensors", {}, "transformer"),
        ("Style-LowNoise-v2.safetensors", {}, "transformer_2"),
        ("style.safetensors", {"ss_output_name": "style low noise"}, "transformer_2"),
        ("style.safetensors", {"modelspec.title": "High_Noise"}, "transformer"),
        ("high_noise/style_low_noise.safetensors", {}, "transformer"),
    ],
)
@pytest.mark.parametrize("component", [DENOISER, "transformer"])
def test_of_two_denoisers_the_one_is_meant_whose_noise_the_file_names(
    source: str, metadata: dict[str, str], expected: str, component: str
) -> None:
    assert list(bind(adapter(denoiser(component), source=source, metadata=metadata), two()).deltas) == [
        expected
    ]


def test_a_file_of_low_noise_goes_to_the_one_denoiser_that_there_is() -> None:
    plan = bind(adapter(denoiser(), source="x_low_noise"), {"transformer": tiny_flux_transformer()})
    assert list(plan.deltas) == ["transformer"]


def test_the_caller_may_say_which_denoisers_get_a_file_and_the_report_lists_both() -> None:
    file = adapter(denoiser(), source="x_high_noise")
    assert list(bind(file, two(), denoisers=["transformer_2"]).deltas) == ["transformer_2"]
    plan = bind(file, two(), denoisers=["transformer", "transformer_2"])
    assert {name: list(part) for name, part in plan.deltas.items()} == {n: ["x_embedder"] for n in two()}
    assert [(part.component, part.targets) for part in plan.report.components] == [
        ("transformer", 1),
        ("transformer_2", 1),
    ]
    assert "transformer_2: 1 targets from the same keys" in str(plan.report)
    check_sum(plan.report)


def test_a_file_that_names_both_denoisers_fills_both() -> None:
    file = adapter(denoiser("transformer"), denoiser("transformer_2"), source="x_low_noise")
    plan = bind(file, two(), denoisers=["transformer_2"])
    assert list(plan.deltas) == ["transformer", "transformer_2"]


def test_a_denoiser_that_the_pipeline_does_not_have_is_refused() -> None:
    with pytest.raises(
        StateError, match=r"'transformer_2' is not among this pipeline's denoisers \(transformer\)"
    ):
        bind(adapter(denoiser()), {"transformer": tiny_flux_transformer()}, denoisers=["transformer_2"])


def test_a_file_that_calls_a_transformer_a_unet_lands_on_it() -> None:
    plan = bind(adapter(denoiser("unet")), {"transformer": tiny_flux_transformer()})
    assert list(plan.deltas) == ["transformer"]
    with pytest.raises(UnknownTargetError, match="no place in this pipeline"):
        bind(adapter(denoiser("unet"), denoiser("transformer")), two())
