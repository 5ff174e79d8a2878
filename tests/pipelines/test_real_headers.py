"""Files with the keys of real ones, as narrow as small models: each key acts, at the strength of the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, Qwen3Config, Qwen3Model, T5Config, T5EncoderModel

import lorry
from lorry.binding import weight_shape
from models import tiny_flux_pipeline
from pipelines import every
from snapshots import check_same, snapshot

FLUX = {3072: 32, 9216: 96, 12288: 128, 15360: 160, 18432: 192, 21504: 224, 6144: 64}
FLUX |= {64: 16, 128: 32, 4096: 24, 768: 8, 10240: 40}
"""{a width in the header: the width in the small model}; others are the same."""
KREA = {6144: 64, 1536: 32, 16384: 48, 36864: 384, 2560: 24, 6912: 40, 64: 16}
ANIMA = {2048: 32, 1024: 24, 2816: 40}
FILES: dict[str, tuple[str, Mapping[int, int]]] = {
    "flux_lora_kohya_format": ("flux", FLUX),
    "flux_lora_aitoolkit_format": ("flux", FLUX),
    "flux_lora_xlabs_format": ("flux", FLUX),
    "flux_dora_onetrainer_format": ("flux", FLUX),
    "flux_control_lora_format": ("flux", FLUX),
    "krea2_lora_kohya_format": ("krea 2", KREA),
    "qwen_image_lora_diffusers_format": ("qwen image", {3072: 32}),
    "anima_lora_kohya_with_te_format": ("anima", ANIMA),
}
MORE_THAN_LORAS = ("flux_dora_onetrainer_format", "flux_control_lora_format")


def flux() -> Any:
    """As many blocks as FLUX.1 has, and encoders with as many layers, all narrow."""
    pipe = tiny_flux_pipeline()
    small: dict[str, Any] = {"attention_head_dim": 16, "num_attention_heads": 2, "axes_dims_rope": (4, 4, 8)}
    pipe.register_modules(
        transformer=diffusers.FluxTransformer2DModel(
            **small,
            in_channels=16,
            joint_attention_dim=24,
            pooled_projection_dim=8,
            guidance_embeds=True,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                hidden_size=8,
                intermediate_size=32,
                num_hidden_layers=12,
                num_attention_heads=2,
                vocab_size=20,
            )
        ),
        text_encoder_2=T5EncoderModel(
            T5Config(
                d_model=24,
                d_ff=40,
                num_layers=24,
                num_heads=2,
                d_kv=12,
                feed_forward_proj="gated-gelu",
                vocab_size=20,
            )
        ),
    )
    return pipe


def krea_2() -> Any:
    pipe = every.build("Krea2Pipeline")
    pipe.register_modules(
        transformer=diffusers.Krea2Transformer2DModel(
            in_channels=16,
            num_layers=28,
            attention_head_dim=16,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            timestep_embed_dim=256,
            text_hidden_dim=24,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=40,
            axes_dims_rope=(4, 4, 8),
        )
    )
    return pipe


def qwen_image() -> Any:
    pipe = every.build("QwenImagePipeline")
    small: dict[str, Any] = {"attention_head_dim": 16, "num_attention_heads": 2, "axes_dims_rope": (4, 4, 8)}
    pipe.register_modules(
        transformer=diffusers.QwenImageTransformer2DModel(**small, num_layers=2, joint_attention_dim=16)
    )
    return pipe


def anima() -> Any:
    pipe = every.build("AnimaModularPipeline")
    pipe.update_components(
        transformer=diffusers.CosmosTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            text_embed_dim=32,
            adaln_lora_dim=4,
            num_layers=1,
            extra_pos_embed_type=None,
        ),
        text_encoder=Qwen3Model(
            Qwen3Config(
                hidden_size=24,
                intermediate_size=40,
                num_hidden_layers=1,
                head_dim=12,
                num_attention_heads=2,
                num_key_value_heads=2,
                vocab_size=20,
            )
        ),
    )
    return pipe


PIPELINES = {"flux": flux, "krea 2": krea_2, "qwen image": qwen_image, "anima": anima}


def shrunk(folder: Path, name: str) -> dict[str, Tensor]:
    """A file of a header's keys, its widths as in the small model and its ranks no more than 8."""
    keys: dict[str, list[int]] = json.loads((folder / "headers" / f"{name}.json").read_text("utf-8"))["keys"]
    random, widths, found = torch.Generator().manual_seed(0), FILES[name][1], dict[str, Tensor]()
    for key, shape in keys.items():
        ranked = next((at for at, ends in enumerate((DOWN, UP)) if key.endswith(ends)), None)
        small = [min(n, 8) if at == ranked else widths.get(n, n) for at, n in enumerate(shape)]
        small = [16] if shape == [128] else small  # a norm of one head
        found[key] = torch.randn(small, generator=random) / 3 if small else torch.tensor(3.0)
    return found


DOWN, UP = (
    ("lora_down.weight", "lora_A.weight", ".down.weight"),
    ("lora_up.weight", "lora_B.weight", ".up.weight"),
)


def total(tensors: Mapping[str, Tensor]) -> float:
    """The sum of the squares of all that a file of LoRAs adds: splitting and exchanging rows leaves it as it is."""
    squares = 0.0
    for key, down in tensors.items():
        if end := next((end for end in DOWN if key.endswith(end)), None):
            stem, up = key.removesuffix(end), tensors[key.removesuffix(end) + UP[DOWN.index(end)]]
            alpha = tensors.get(f"{stem}alpha")
            scale = 1.0 if alpha is None else float(alpha) / len(down)
            squares += float((scale * (up.double() @ down.double())).square().sum())
    return squares


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_the_keys_of_a_real_one_acts_in_full_and_leaves_no_trace(
    name: str, shared_dir: Path
) -> None:
    tensors = shrunk(shared_dir, name)
    pipe = lorry.attach(PIPELINES[FILES[name][0]]())
    models = [m for m in pipe.components.values() if isinstance(m, torch.nn.Module)]
    weights = [
        m.get_parameter("weight") for model in models for m in model.modules() if weight_shape(m) is not None
    ]
    before, seen = [weight.detach().clone() for weight in weights], [snapshot(model) for model in models]
    report = pipe.load_lora_weights(tensors)
    assert (report.applied, report.key_count, report.unknown, report.ignored) == (
        len(tensors),
        len(tensors),
        (),
        (),
    )
    if name not in MORE_THAN_LORAS:
        pipe.fuse_lora()
        added = sum(
            float((now.detach().double() - was.double()).square().sum())
            for now, was in zip(weights, before, strict=True)
        )
        assert added == pytest.approx(total(tensors), rel=1e-5)
        pipe.unfuse_lora()
    pipe.unload_lora_weights()
    for model, was in zip(models, seen, strict=True):
        check_same(snapshot(model), was)
