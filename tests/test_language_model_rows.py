"""Files for language models that read the prompt, in the places that pipelines have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

import lorry
from pipelines import every
from rows import KOHYA, Part, Row
from walks import CARRY, check_there_and_back, models_of, walk

DECODERS: dict[str, tuple[str, Any, Any]] = {
    "Qwen 3": ("ZImagePipeline", transformers.Qwen3Model, transformers.Qwen3Config),
    "Gemma 2": ("Lumina2Pipeline", transformers.Gemma2Model, transformers.Gemma2Config),
}


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("prefix", ["lora_te_", "lora_te1_model_"])
def test_language_models_that_read_the_prompt_are_trained_along(
    name: str, prefix: str, tmp_path: Path
) -> None:
    build, model, config = DECODERS[name]
    small = config(vocab_size=40, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                   num_key_value_heads=1, head_dim=16)  # fmt: skip
    pipe = every.build(build)
    pipe.register_modules(text_encoder=model(small).eval())
    lorry.attach(pipe)
    layers = {
        f"{prefix}layers_0_self_attn_{end}": f"text_encoder/layers.0.self_attn.{end}"
        for end in ("q_proj", "k_proj")
    }
    row = Row(
        build,
        [
            Part(
                {**layers, f"{prefix}layers_1_mlp_gate_proj": "text_encoder/layers.1.mlp.gate_proj"},
                KOHYA,
                True,
            )
        ],
        "kohya",
    )
    tensors, changes = row.make(pipe)
    source = row.write(tensors, tmp_path)
    assert walk(pipe, source, changes).applied == len(tensors)
    without = {"lycoris", "comfyui"}  # ComfyUI's names go by the models' true widths
    assert check_there_and_back(source, "kohya", tmp_path, models_of(pipe)) == CARRY - without


LLAMAS: dict[str, tuple[str, Any, str, str, str, str, str]] = {
    "HunyuanVideo, mixture": (
        *("HunyuanVideoPipeline", transformers.LlamaModel, "text_encoder/layers", "text_encoder_2"),
        *("lora_te1_language_model_model_layers", "lora_te2_", "kohya"),
    ),
    "HunyuanVideo, OMI": (
        *("HunyuanVideoPipeline", transformers.LlamaModel, "text_encoder/layers", "text_encoder_2"),
        *("llama.language_model.model.layers", "clip_l.", "omi"),
    ),
    "HiDream, mixture": (
        *(
            "HiDreamImagePipeline",
            transformers.LlamaForCausalLM,
            "text_encoder_4/model.layers",
            "text_encoder",
        ),
        *("lora_te4_model_layers", "lora_te1_", "kohya"),
    ),
    "HiDream, OMI": (
        *(
            "HiDreamImagePipeline",
            transformers.LlamaForCausalLM,
            "text_encoder_4/model.layers",
            "text_encoder",
        ),
        *("llama.model.layers", "clip_l.", "omi"),
    ),
}


@pytest.mark.parametrize("name", LLAMAS)
def test_onetrainers_llamas_and_clips_are_found_in_their_places(name: str, tmp_path: Path) -> None:
    build, model, own, clip, prefix, clip_prefix, dialect = LLAMAS[name]
    small = transformers.LlamaConfig(vocab_size=40, hidden_size=32, intermediate_size=24, num_hidden_layers=2,
                                     num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    pipe = every.build(build)
    pipe.register_modules(**{own.partition("/")[0]: model(small).eval()})
    lorry.attach(pipe)
    dot = "_" if prefix.startswith("lora_") else "."
    ends = ("0.self_attn.q_proj", "0.self_attn.o_proj", "1.mlp.up_proj")
    layers = {f"{prefix}.{end}".replace(".", dot): f"{own}.{end}" for end in ends}
    end = "encoder.layers.0.mlp.fc1"
    layers[f"{clip_prefix}text_model.{end}".replace(".", dot)] = f"{clip}/{end}"
    row = Row(build, [Part(layers, KOHYA, True)], dialect)
    tensors, changes = row.make(pipe)
    source = row.write(tensors, tmp_path)
    report = walk(pipe, source, changes)
    assert (report.dialect, report.applied, report.key_count) == (dialect, len(tensors), len(tensors))
    assert {own.partition("/")[0], clip} == changes.keys()
    assert {"onetrainer", "omi"} <= check_there_and_back(source, dialect, tmp_path, models_of(pipe))
