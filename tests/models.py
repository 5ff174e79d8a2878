"""Tiny models and pipelines with random weights, and adapters for them, made in a fraction of a second.

Everything is deterministic by `seed`, needs no network, and is float32 on the CPU in eval mode. The models reproduce
the module names of the real ones (attention, feed-forward, convolution, projection layers of both kinds), not their
sizes; widths are unlike each other where the architecture lets them be, so that a swapped axis shows.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    OvisImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from lorry.adapters import Adapter, Entry
from lorry.algebra import Delta, LoraDelta
from lorry.binding import weight_shape
from lorry.names import Target

TEXT_WIDTH = 32
"""The width of a CLIP text encoder's states, and of its pooled projection."""
T5_WIDTH = 24
MAX_TOKENS = 16


def _built(build: type, seed: int, *args: Any, **kwargs: Any) -> Any:
    """Make a model with weights by `seed`, leaving torch's own random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*args, **kwargs).eval()


# --- text ---------------------------------------------------------------------------------------------------------


def tiny_clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that spells words letter by letter; begin is token 0, end and padding 1."""
    letters = [*string.ascii_lowercase, *string.digits, *",.-!?"]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=MAX_TOKENS)


def tiny_t5_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer that spells words letter by letter; padding is token 0, end 1, unknown 2."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(letter, -3.0) for letter in (*string.ascii_lowercase, *string.digits)]
    return T5Tokenizer(vocab=[*special, *letters], extra_ids=0, model_max_length=MAX_TOKENS)


def tiny_text_encoder(seed: int = 1, projection: bool = False, width: int = TEXT_WIDTH) -> Any:
    """A CLIP text encoder of two layers; with `projection` the class that SDXL's second one has."""
    config = CLIPTextConfig(
        vocab_size=len(tiny_clip_tokenizer()),
        hidden_size=width,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=width,
        hidden_act="gelu" if projection else "quick_gelu",
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return _built(CLIPTextModelWithProjection if projection else CLIPTextModel, seed, config)


def tiny_t5_encoder(seed: int = 3, width: int = T5_WIDTH) -> T5EncoderModel:
    """A T5 encoder of one layer."""
    config = T5Config(
        vocab_size=len(tiny_t5_tokenizer()),
        d_model=width,
        d_kv=8,
        d_ff=40,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
    )
    return _built(T5EncoderModel, seed, config)


# --- denoisers and the VAE ----------------------------------------------------------------------------------------


def tiny_unet(seed: int = 0, **changes: Any) -> UNet2DConditionModel:
    """A UNet as SD 1.5's: 1x1 convolutions as `proj_in`, a block without attention, 8x8 latents.

    Args:
        seed: of the weights.
        changes: other values for its configuration.
    """
    config: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 2,
    }
    return _built(UNet2DConditionModel, seed, **config | changes)


def tiny_sdxl_unet(seed: int = 0, **changes: Any) -> UNet2DConditionModel:
    """A UNet as SDXL's: linear `proj_in`, blocks of one and two transformer layers, time and text embeddings added."""
    config: dict[str, Any] = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "attention_head_dim": (2, 4),
        "cross_attention_dim": 2 * TEXT_WIDTH,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + TEXT_WIDTH,
    }
    return tiny_unet(seed, **config | changes)


def tiny_vae(seed: int = 5, channels: int = 4, sd3: bool = False) -> AutoencoderKL:
    """A VAE that halves the picture; with `sd3` as the newer models have it, with a shift and no quantising layers."""
    config: dict[str, Any] = {
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "latent_channels": channels,
        "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
        "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
        "sample_size": 16,
    }
    if sd3:
        config |= {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.06}
    return _built(AutoencoderKL, seed, **config)


def tiny_sd3_transformer(seed: int = 0) -> SD3Transformer2DModel:
    """The transformer of SD3, of two layers; 8x8 latents of 4 channels."""
    config: dict[str, Any] = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 2 * TEXT_WIDTH,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 2 * TEXT_WIDTH,
        "pos_embed_max_size": 8,
    }
    return _built(SD3Transformer2DModel, seed, **config)


def tiny_flux_transformer(seed: int = 0, guidance: bool = False) -> FluxTransformer2DModel:
    """The transformer of Flux, of one double and two single blocks; with `guidance` as the `dev` model has it."""
    config: dict[str, Any] = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": T5_WIDTH,
        "pooled_projection_dim": TEXT_WIDTH,
        "guidance_embeds": guidance,
        "axes_dims_rope": (4, 4, 8),
    }
    return _built(FluxTransformer2DModel, seed, **config)


def tiny_ovis_transformer(seed: int = 0) -> OvisImageTransformer2DModel:
    """The transformer of Ovis-Image, whose original has its feed-forwards' first layers in two."""
    config: dict[str, Any] = {
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": T5_WIDTH,
        "axes_dims_rope": (4, 4, 8),
    }
    return _built(OvisImageTransformer2DModel, seed, **config)


# --- pipelines ----------------------------------------------------------------------------------------------------


def tiny_sd_pipeline(seed: int = 0, cls: Any = StableDiffusionPipeline) -> Any:
    """A Stable Diffusion pipeline (or one of `cls`, with the same components); pictures of 16x16."""
    return cls(
        vae=tiny_vae(seed + 5),
        text_encoder=tiny_text_encoder(seed + 1),
        tokenizer=tiny_clip_tokenizer(),
        unet=tiny_unet(seed),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_sdxl_pipeline(seed: int = 0, cls: Any = StableDiffusionXLPipeline) -> Any:
    """An SDXL pipeline with both text encoders; pictures of 16x16."""
    return cls(
        vae=tiny_vae(seed + 5),
        text_encoder=tiny_text_encoder(seed + 1),
        text_encoder_2=tiny_text_encoder(seed + 2, projection=True),
        tokenizer=tiny_clip_tokenizer(),
        tokenizer_2=tiny_clip_tokenizer(),
        unet=tiny_sdxl_unet(seed),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        add_watermarker=False,
    )


def tiny_sd3_pipeline(seed: int = 0, cls: Any = StableDiffusion3Pipeline) -> Any:
    """An SD3 pipeline with two CLIP encoders and T5; pictures of 16x16."""
    return cls(
        vae=tiny_vae(seed + 5, sd3=True),
        text_encoder=tiny_text_encoder(seed + 1, projection=True),
        text_encoder_2=tiny_text_encoder(seed + 2, projection=True),
        text_encoder_3=tiny_t5_encoder(seed + 3, width=2 * TEXT_WIDTH),
        tokenizer=tiny_clip_tokenizer(),
        tokenizer_2=tiny_clip_tokenizer(),
        tokenizer_3=tiny_t5_tokenizer(),
        transformer=tiny_sd3_transformer(seed),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def tiny_flux_pipeline(seed: int = 0, cls: Any = FluxPipeline) -> Any:
    """A Flux pipeline with CLIP and T5; pictures of 16x16."""
    return cls(
        vae=tiny_vae(seed + 5, sd3=True),
        text_encoder=tiny_text_encoder(seed + 1),
        text_encoder_2=tiny_t5_encoder(seed + 3),
        tokenizer=tiny_clip_tokenizer(),
        tokenizer_2=tiny_t5_tokenizer(),
        transformer=tiny_flux_transformer(seed),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def tiny_wan_transformer(seed: int = 0) -> WanTransformer3DModel:
    """Wan's transformer: blocks, and the model itself, have parameters of their own."""
    return _built(
        WanTransformer3DModel,
        seed,
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=T5_WIDTH,
        freq_dim=8,
        ffn_dim=20,
        num_layers=2,
    )


def tiny_wan_pipeline(seed: int = 0, cls: Any = WanPipeline) -> Any:
    """A Wan pipeline with T5; one frame of 16x16."""
    latents: dict[str, Any] = {"z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    vae = _built(AutoencoderKLWan, seed + 5, base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **latents)
    return cls(
        vae=vae,
        text_encoder=tiny_t5_encoder(seed + 3),
        tokenizer=tiny_t5_tokenizer(),
        transformer=tiny_wan_transformer(seed),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


# --- what a model is called with ----------------------------------------------------------------------------------


def unet_inputs(unet: UNet2DConditionModel, seed: int = 0, batch: int = 2) -> dict[str, Any]:
    """Fixed arguments for a UNet's forward, in its dtype."""
    config: Any = unet.config
    random = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(unet.dtype)

    inputs: dict[str, Any] = {
        "sample": noise(batch, config.in_channels, 8, 8),
        "timestep": 7,
        "encoder_hidden_states": noise(batch, 5, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": noise(batch, width), "time_ids": torch.ones(batch, 6)}
    return inputs


# --- adapters -----------------------------------------------------------------------------------------------------


def carriers(model: nn.Module, ends: Iterable[str] = ("",)) -> dict[str, nn.Module]:
    """Every module that can carry a delta, by path; with `ends`, those whose path ends so."""
    kept = tuple(ends)
    return {p: m for p, m in model.named_modules() if len(weight_shape(m) or ()) > 1 and p.endswith(kept)}


def random_delta(
    shape: tuple[int, ...],
    seed: int = 0,
    rank: int = 3,
    *,
    alpha: float | None = None,
    tucker: bool = False,
    rank_stabilised: bool = False,
    size: float = 0.5,
    dtype: torch.dtype = torch.float32,
) -> LoraDelta:
    """A LoRA for a weight of `shape`, which changes a layer's output by about `size` times its input."""
    random = torch.Generator().manual_seed(seed)

    def noise(*axes: int) -> Tensor:
        return torch.randn(*axes, generator=random)

    out, fan_in, *kernel = shape
    ones = [1 for _ in kernel]
    core = noise(rank, rank, *kernel) / rank**0.5 if tucker else None
    down = noise(rank, fan_in, *(ones if tucker else kernel))
    factor = size / (down[0].numel() * rank) ** 0.5
    return LoraDelta(
        (down * factor).to(dtype),
        noise(out, rank, *ones).to(dtype),
        None if core is None else core.to(dtype),
        alpha,
        rank_stabilised,
    )


def random_deltas(
    model: nn.Module, seed: int = 0, ends: Iterable[str] = ("",), rank: int = 3, **kwargs: Any
) -> dict[str, Delta]:
    """Random LoRAs by module path, for the carriers of a model: what `AdapterState.add` takes."""
    found = carriers(model, ends)
    return {
        path: random_delta(weight_shape(module) or (), seed * 1000 + number, rank, **kwargs)
        for number, (path, module) in enumerate(found.items())
    }


def as_adapter(deltas: Mapping[str, Delta], component: str = "unet", **kwargs: Any) -> Adapter:
    """An `Adapter` of these deltas, with the keys that diffusers' dialect would have: what `bind` takes."""
    entries = [
        Entry(Target(component, path), delta, (f"{component}.{path}.lora_A", f"{component}.{path}.lora_B"))
        for path, delta in deltas.items()
    ]
    return Adapter(tuple(entries), kwargs.pop("dialect", "test"), **kwargs)
