"""Every family on layers that the file has in one and the model in parts, or the other way round.

The parts are as unequal as in the real models: grouped-query attention has fewer keys than queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from torch import Tensor

import formulas
import lorry
from models import tiny_flux_pipeline, tiny_sd3_pipeline
from pipelines import every
from row_layers import ADDED, qkv
from walks import check_outputs, check_same, check_weights, expected_layers, models_of, weights

Tensors = dict[str, Tensor]
STRENGTHS = (1.0, 0.5, -1.0)


def lumina_2() -> Any:
    pipe = every.build("Lumina2Pipeline")
    small: dict[str, Any] = {
        "hidden_size": 96,
        "num_attention_heads": 6,
        "num_kv_heads": 2,
        "multiple_of": 16,
    }
    axes: dict[str, Any] = {"axes_dim_rope": (4, 4, 8), "axes_lens": (8, 8, 8)}
    pipe.register_modules(
        transformer=diffusers.Lumina2Transformer2DModel(
            **small, **axes, num_layers=1, num_refiner_layers=1, cap_feat_dim=16
        ).eval()
    )
    return pipe


def krea_2() -> Any:
    pipe = every.build("Krea2Pipeline")
    small: dict[str, Any] = {"attention_head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    text: dict[str, Any] = {
        "text_num_attention_heads": 3,
        "text_num_key_value_heads": 1,
        "text_hidden_dim": 24,
    }
    pipe.register_modules(
        transformer=diffusers.Krea2Transformer2DModel(
            **small, **text, in_channels=16, num_layers=1, intermediate_size=48, timestep_embed_dim=16,
            text_intermediate_size=40, axes_dims_rope=(4, 4, 8),
        ).eval()
    )  # fmt: skip
    return pipe


class Place(NamedTuple):
    """A layer of a file: what it is called there, and its rows in the model; `~` exchanges the halves of a module's."""

    build: Callable[[], Any]
    stem: str
    modules: str


SINGLE = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
FINAL = "final_layer.adaLN_modulation.1"
PLACES: Mapping[str, Place] = {
    "Flux, linear1": Place(
        tiny_flux_pipeline,
        "diffusion_model.single_blocks.1.linear1",
        qkv("single_transformer_blocks.1", SINGLE),
    ),
    "Flux, DiffSynth's name": Place(
        tiny_flux_pipeline, "blocks.0.attn.b_to_qkv", qkv("transformer_blocks.0.attn", ADDED)
    ),
    "Flux, exchanged halves": Place(
        tiny_flux_pipeline, f"lora_unet_{FINAL.replace('.', '_')}", "~transformer/norm_out.linear"
    ),
    "SD3, qkv": Place(
        tiny_sd3_pipeline,
        "lora_unet_joint_blocks_0_context_block_attn_qkv",
        qkv("transformer_blocks.0.attn", ADDED),
    ),
    "Lumina 2, grouped queries": Place(
        lumina_2, "diffusion_model.layers.0.attention.qkv", qkv("layers.0.attn")
    ),
    "Krea 2, grouped queries in one": Place(
        krea_2, "lycoris_transformer_blocks_0_attn_to_qkv", qkv("transformer_blocks.0.attn")
    ),
    "Krea 2, the text's": Place(
        krea_2,
        "lycoris_text_fusion_refiner_blocks_0_attn_to_qkv",
        qkv("text_fusion.refiner_blocks.0.attn"),
    ),
    "HunyuanVideo, qkv": Place(
        lambda: every.build("HunyuanVideoPipeline"),
        "diffusion_model.double_blocks.0.img_attn_qkv",
        qkv("transformer_blocks.0.attn"),
    ),
    "MiniMax-H3, gate and value": Place(
        lambda: every.build("MiniMaxH3ModularPipeline"),
        "diffusion_model.blocks.0.mlp.fc1",
        "~transformer/transformer_blocks.0.ff.net.0.proj",
    ),
    "Sana, keys and values": Place(
        lambda: every.build("SanaPipeline"),
        "diffusion_model.blocks.0.cross_attn.kv_linear",
        qkv("transformer_blocks.0.attn2", ("to_k", "to_v")),
    ),
}


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape) / 2


def alpha(value: float) -> Tensors:
    return {"alpha": torch.tensor(value)}


def lora(rows: int, columns: int) -> Tensors:
    return {"lora_down.weight": noise(3, columns), "lora_up.weight": noise(rows, 3), **alpha(2.0)}


def loha(rows: int, columns: int) -> Tensors:
    halves = {f"hada_w{n}_{side}": noise(*shape) for n in (1, 2) for side, shape in
              (("a", (rows, 2)), ("b", (2, columns)))}  # fmt: skip
    return {**halves, **alpha(1.5)}


def lokr(rows: int, columns: int) -> Tensors:
    factors = {"lokr_w2_a": noise(rows // 2, 2), "lokr_w2_b": noise(2, columns // 2)}
    return {"lokr_w1": noise(2, 2), **factors, **alpha(1.5)}


def glora(rows: int, columns: int) -> Tensors:
    shapes = {"a1": (columns, 2), "a2": (2, columns), "b1": (rows, 2), "b2": (2, columns)}
    return {**{f"{name}.weight": noise(*shape) for name, shape in shapes.items()}, **alpha(1.0)}


def turned(blocks: int, limit: float) -> Callable[[int, int], Tensors]:
    return lambda rows, _: {
        "oft_blocks": noise(blocks or rows // 2, *[rows // (blocks or rows // 2)] * 2) / 4,
        **alpha(limit),
    }


FAMILIES: Mapping[str, Callable[[int, int], Tensors]] = {
    "LoRA": lora,
    "DoRA of rows": lambda rows, columns: {**lora(rows, columns), "dora_scale": torch.rand(rows, 1) + 0.5},
    "DoRA of columns": lambda rows, columns: {
        **lora(rows, columns),
        "dora_scale": torch.rand(1, columns) + 0.5,
    },
    "LoHa": loha,
    "LoKr": lokr,
    "DoRA of a LoKr's rows": lambda rows, columns: {
        **lokr(rows, columns),
        "dora_scale": torch.rand(rows, 1) + 0.5,
    },
    "LoKr, whole": lambda rows, columns: {"lokr_w1": noise(rows // 4, 2), "lokr_w2": noise(4, columns // 2)},
    "GLoRA": glora,
    "OFT over the border": turned(2, 0.0),
    "OFT within it, limited": turned(0, 0.01),
    "BOFT": lambda rows, _: {"oft_blocks": noise(2, rows // 2, 2, 2), **alpha(0.0)},
    "(IA)^3 of rows": lambda rows, _: {"weight": noise(rows), "on_input": torch.tensor(False)},
    "(IA)^3 of columns": lambda _, columns: {"weight": noise(columns), "on_input": torch.tensor(True)},
    "OFT of columns": lambda _, columns: {"oft_R.weight": noise(columns // 4, 6)},
    "difference": lambda rows, columns: {"diff": noise(rows, columns)},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", PLACES)
def test_the_parts_get_their_rows_of_what_the_formula_makes_of_the_whole(place: str, family: str) -> None:
    torch.manual_seed(0)
    build, stem, named = PLACES[place]
    pipe = lorry.attach(build())
    paths = named.replace("~", "").replace("transformer/", "").split(" + ")
    parts = [pipe.transformer.get_submodule(path).weight.detach().double() for path in paths]
    whole = exchanged(torch.cat(parts)) if named.startswith("~") else torch.cat(parts)
    made = FAMILIES[family](*whole.shape)
    models, tensors = models_of(pipe), {f"{stem}.{suffix}": tensor for suffix, tensor in made.items()}
    before, expected = weights(models), {}
    for strength in STRENGTHS:
        change = formulas.changes(made, whole, strength=strength)["weight"]
        change = exchanged(change) if named.startswith("~") else change
        rows = zip(paths, change.split([len(part) for part in parts]), strict=True)
        expected[strength] = expected_layers(
            models, {"transformer": {f"{path}.weight": row for path, row in rows}}
        )
    report = pipe.load_lora_weights(tensors, adapter_name="a")
    assert report.applied == report.key_count == len(tensors)
    for strength, layers in expected.items():
        pipe.set_adapters("a", strength)
        check_outputs(models, layers)
        pipe.fuse_lora()
        check_weights(models, layers, before)
        pipe.unfuse_lora()
        check_same(models, before)
    pipe.unload_lora_weights()
    check_same(models, before)


def exchanged(rows: Tensor) -> Tensor:
    return torch.cat(rows.chunk(2)[::-1])
