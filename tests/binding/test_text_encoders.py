"""Which text encoder a file means, where its trainer counts them otherwise than the pipeline."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lorry.adapters import Adapter, Entry
from lorry.algebra import LoraDelta
from lorry.binding import bind
from lorry.names import Target
from models import tiny_t5_encoder, tiny_text_encoder

T5, CLIP = "encoder.block.0.layer.0.SelfAttention.k", "text_model.encoder.layers.0.self_attn.k_proj"


def adapter(*targets: Target) -> Adapter:
    return Adapter(tuple(entry(target) for target in targets), "test")


def entry(target: Target) -> Entry:
    width = 32 if "k_proj" in target.path else 16
    return Entry(
        target, LoraDelta(torch.randn(2, width), torch.randn(width, 2)), (f"{target}.down", f"{target}.up")
    )


def clip() -> nn.Module:
    return tiny_text_encoder(width=32)


def t5() -> nn.Module:
    return tiny_t5_encoder(width=16)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("place", [2, 3])
def test_a_t5_is_found_in_whatever_place_it_is(flat: bool, number: int, place: int) -> None:
    models = {"text_encoder": clip(), "text_encoder_2": clip(), f"text_encoder_{place}": t5()}
    path = T5.replace(".", "_") if flat else T5
    plan = bind(adapter(Target("text_encoder", CLIP), Target(f"text_encoder_{number}", path, flat)), models)
    assert set(plan.deltas) == {"text_encoder", f"text_encoder_{place}"}
    assert set(plan.deltas[f"text_encoder_{place}"]) == {T5}


def test_a_t5_that_is_not_loaded_is_ignored_by_its_name_in_the_pipeline() -> None:
    models = {"text_encoder": clip(), "text_encoder_2": None}
    plan = bind(adapter(Target("text_encoder", CLIP), Target("text_encoder_3", T5)), models)
    assert {ignored.reason for ignored in plan.report.ignored} == {
        "the pipeline has no text_encoder_2 loaded"
    }
