"""Headers of every dialect for every architecture, made by the dialect's rule from the model's own layers.

Each is claimed by one dialect, every key is accounted for, and every layer of the model is found again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import diffusers
import pytest
import torch
import transformers
from torch import Tensor, nn

from architectures import SD15, SDXL, Config
from lorry.binding import bind, weight_shape
from lorry.dialects import find_dialect, read_adapter
from lorry.errors import NothingAppliedError
from lorry.files import TensorFile

ONE, TWO = {"num_layers": 1}, {"num_layers": 2}
SINGLE = {"num_layers": 1, "num_single_layers": 1}
HIDREAM = {
    **SINGLE,
    "patch_size": 2,
    "in_channels": 16,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "caption_channels": [8, 8],
    "text_emb_dim": 8,
    "num_routed_experts": 4,
    "num_activated_experts": 2,
    "axes_dims_rope": (4, 2, 2),
    "max_resolution": (16, 16),
    "llama_layers": [0, 1],
}
"""It has no defaults for its sizes."""
DENOISERS: dict[str, tuple[str, Config]] = {
    "Stable Diffusion": ("UNet2DConditionModel", SD15),
    "SDXL": ("UNet2DConditionModel", {**SDXL, "transformer_layers_per_block": 1}),
    "Stable Diffusion 3": ("SD3Transformer2DModel", TWO),
    "Flux": ("FluxTransformer2DModel", {**SINGLE, "guidance_embeds": True}),
    "Flux 2": ("Flux2Transformer2DModel", SINGLE),
    "Chroma": ("ChromaTransformer2DModel", SINGLE),
    "Wan": ("WanTransformer3DModel", ONE),
    "Wan I2V": ("WanTransformer3DModel", {**ONE, "image_dim": 1280, "added_kv_proj_dim": 5120}),
    "HunyuanVideo": ("HunyuanVideoTransformer3DModel", {**SINGLE, "num_refiner_layers": 1}),
    "LTX-Video": ("LTXVideoTransformer3DModel", ONE),
    "Qwen-Image": ("QwenImageTransformer2DModel", ONE),
    "Z-Image": ("ZImageTransformer2DModel", {"n_layers": 1, "n_refiner_layers": 1}),
    "Lumina 2": ("Lumina2Transformer2DModel", {"num_layers": 1, "num_refiner_layers": 1}),
    "Sana": ("SanaTransformer2DModel", ONE),
    "CogVideoX": ("CogVideoXTransformer3DModel", ONE),
    "CogView 4": ("CogView4Transformer2DModel", ONE),
    "Mochi": ("MochiTransformer3DModel", TWO),
    "AuraFlow": ("AuraFlowTransformer2DModel", {"num_mmdit_layers": 1, "num_single_dit_layers": 1}),
    "HiDream": ("HiDreamImageTransformer2DModel", HIDREAM),
    "PixArt": ("PixArtTransformer2DModel", {"num_layers": 1, "sample_size": 32}),
    "Cosmos, Anima": ("CosmosTransformer3DModel", ONE),
    "Stable Cascade": ("StableCascadeUNet", {}),
}

Pair = tuple[str, str]
AB, KOHYA = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")


class Rule(NamedTuple):
    dialect: str
    stem: Callable[[str], str]
    pair: Pair
    alpha: bool = False


def flat(prefix: str) -> Callable[[str], str]:
    return lambda path: prefix + path.replace(".", "_")


def dotted(prefix: str) -> Callable[[str], str]:
    return lambda path: prefix + path


RULES = {
    "kohya": Rule("kohya", flat("lora_unet_"), KOHYA, True),
    "OneTrainer": Rule("onetrainer", flat("lora_transformer_"), KOHYA, True),
    "LyCORIS": Rule("lycoris", flat("lycoris_"), KOHYA, True),
    "diffusers": Rule("diffusers", dotted("COMPONENT."), AB),
    "Civitai": Rule("dotted-kohya", dotted("COMPONENT."), KOHYA, True),
    "ComfyUI": Rule("comfyui", dotted("diffusion_model."), AB, True),
    "PEFT": Rule("peft", dotted("base_model.model."), AB),
    "LoKr": Rule("lycoris", flat("lycoris_"), ("lokr_w1", "lokr_w2")),
}


@cache
def denoiser(name: str) -> nn.Module:
    build, config = DENOISERS[name]
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers' of its own classes
        return getattr(diffusers, build)(**config)


@cache
def layers(name: str) -> dict[str, tuple[int, ...]]:
    kinds = (nn.Linear, nn.Conv2d)
    found = {path: weight_shape(m) for path, m in denoiser(name).named_modules() if isinstance(m, kinds)}
    return {path: shape for path, shape in found.items() if shape is not None}


def component(name: str) -> str:
    return (
        "unet" if DENOISERS[name][0].startswith("UNet") else "prior" if "Cascade" in name else "transformer"
    )


def header(name: str, rule: Rule) -> TensorFile:
    """Tensors of the right shapes that take the memory of one number."""
    one, tensors = torch.ones(()), dict[str, Tensor]()
    for path, shape in layers(name).items():
        stem = rule.stem(path).replace("COMPONENT", component(name))
        down, up = (1, *shape[1:]), (shape[0], 1, *(1 for _ in shape[2:]))
        shapes = ((1, 1), shape) if "lokr" in rule.pair[0] else (down, up)
        for suffix, axes in zip(rule.pair, shapes, strict=True):
            tensors[f"{stem}.{suffix}"] = one.expand(axes)
        if rule.alpha:
            tensors[f"{stem}.alpha"] = torch.ones(())
    return TensorFile(tensors, source="test.safetensors")


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("rule", RULES)
def test_a_header_is_one_dialects_and_finds_every_layer(rule: str, name: str) -> None:
    file = header(name, RULES[rule])
    found, adapter = find_dialect(file), read_adapter(file)
    assert found is not None
    assert (found.name, adapter.dialect) == (RULES[rule].dialect, RULES[rule].dialect)
    assert not adapter.unknown
    assert not adapter.ignored
    report = bind(adapter, {component(name): denoiser(name)}).report
    assert (report.applied, report.targets) == (len(file.tensors), len(layers(name)))
    assert report.key_count == len(file.tensors)


TEXT_ENCODERS = {
    "CLIP": lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(num_hidden_layers=2)),
    "CLIP-G": lambda: transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(num_hidden_layers=2)
    ),
    "T5": lambda: transformers.T5EncoderModel(
        transformers.T5Config(num_layers=2, feed_forward_proj="gated-gelu")
    ),
    "Qwen 3": lambda: transformers.Qwen3Model(transformers.Qwen3Config(num_hidden_layers=2)),
    "Gemma 2": lambda: transformers.Gemma2Model(transformers.Gemma2Config(num_hidden_layers=2)),
}
TEXT_RULES = {
    "kohya": Rule("kohya", flat("lora_te1_"), KOHYA, True),
    "kohya, one": Rule("kohya", flat("lora_te_"), KOHYA, True),
    "diffusers": Rule("diffusers", dotted("text_encoder."), AB),
    "ComfyUI": Rule("comfyui", dotted("text_encoders.any.transformer."), AB),
}
ROOTS = {"CLIP": "text_model.", "CLIP-G": "text_model.", "Qwen 3": "model.", "Gemma 2": "model."}
"""A level that versions of transformers have added or dropped, and that files may have or lack."""


@pytest.mark.parametrize("name", TEXT_ENCODERS)
@pytest.mark.parametrize("rule", TEXT_RULES)
@pytest.mark.parametrize("rooted", [False, True])
def test_a_text_encoders_layers_are_found_with_and_without_their_root(
    rule: str, name: str, rooted: bool
) -> None:
    with torch.device("meta"):
        model = TEXT_ENCODERS[name]()
    made, root = TEXT_RULES[rule], ROOTS.get(name, "")
    tensors = {}
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    for path in paths:
        rows, columns = model.get_submodule(path).weight.shape
        spelled = made.stem((root if rooted else "") + path.removeprefix(root))
        tensors[f"{spelled}.{made.pair[0]}"] = torch.ones(1, columns)
        tensors[f"{spelled}.{made.pair[1]}"] = torch.ones(rows, 1)
    adapter = read_adapter(TensorFile(tensors))
    assert adapter.dialect == made.dialect
    report = bind(adapter, {"text_encoder": model}).report
    assert (report.applied, report.targets) == (len(tensors), len(paths))


def test_a_header_for_another_architecture_is_refused_with_what_has_no_place() -> None:
    adapter = read_adapter(header("SDXL", RULES["kohya"]))
    with pytest.raises(NothingAppliedError, match=r"keys with no place in this pipeline \(transformer\)"):
        bind(adapter, {"transformer": denoiser("Flux")})
