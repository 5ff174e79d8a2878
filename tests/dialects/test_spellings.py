"""Keys as each trainer and each converter writes them: whose file it is, and which module of which model is meant."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from dialects.conftest import Read
from lorry.dialects import find_dialect
from lorry.files import TensorFile
from lorry.names import CONDITIONER, CONNECTORS, DENOISER, Target


class Spelling(NamedTuple):
    dialect: str
    stem: str
    pair: tuple[str, str]
    target: Target


AB, KOHYA = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")
DOTS, BARE, DEFAULT = (
    ("lora.down.weight", "lora.up.weight"),
    ("lora_A", "lora_B"),
    ("lora_A.default.weight", "lora_B.default.weight"),
)
PROCESSOR = ("down.weight", "up.weight")
IMAGE, TEXT = "double_blocks.0.img_attn", "text_encoder"
SECOND, THIRD = "text_encoder_2", "text_encoder_3"
MOTION = "down_blocks.0.motion_modules.0"
T5, T5_FLAT = "encoder.block.0.layer.0.SelfAttention.k", "encoder_block_0_layer_0_SelfAttention_k"


def flat(component: str, path: str) -> Target:
    return Target(component, path, flat=True)


SPELLINGS = {
    "kohya, SDXL": Spelling(
        "kohya",
        "lora_unet_input_blocks_4_1_proj_in",
        KOHYA,
        flat(DENOISER, "input_blocks_4_1_proj_in"),
    ),
    "kohya, the second text encoder": Spelling(
        "kohya",
        "lora_te2_text_model_encoder_layers_0_mlp_fc1",
        KOHYA,
        flat(SECOND, "text_model_encoder_layers_0_mlp_fc1"),
    ),
    "kohya, Flux's T5": Spelling("kohya", f"lora_te3_{T5_FLAT}", KOHYA, flat("text_encoder_3", T5_FLAT)),
    "OneTrainer, Flux's T5": Spelling("kohya", f"lora_te2_{T5_FLAT}", KOHYA, flat(SECOND, T5_FLAT)),
    "OneTrainer, a mixture": Spelling(
        "onetrainer",
        "lora_transformer_single_transformer_blocks_0_attn_to_k",
        KOHYA,
        flat("transformer", "single_transformer_blocks_0_attn_to_k"),
    ),
    "OneTrainer, original names": Spelling(
        "omi", f"transformer.{IMAGE}.qkv.0", KOHYA, Target("transformer", f"{IMAGE}.qkv.0")
    ),
    "Stable Cascade": Spelling(
        "kohya", "lora_prior_unet_down_blocks_0_a", KOHYA, flat("prior", "down_blocks_0_a")
    ),
    "Stable Cascade's text encoder": Spelling(
        "kohya", "lora_prior_te_text_model_a", KOHYA, flat(TEXT, "text_model_a")
    ),
    "Wan-Fun, two underscores": Spelling(
        "kohya", "lora_unet__blocks_0_cross_attn_k", KOHYA, flat(DENOISER, "blocks_0_cross_attn_k")
    ),
    "a converter for Wan, which leaves the dots": Spelling(
        "kohya", "lora_unet_blocks.22.self_attn.k", KOHYA, flat(DENOISER, "blocks_22_self_attn_k")
    ),
    "TheLastBen, an underscore at the end": Spelling(
        "kohya",
        "lora_unet_transformer_blocks_9_attn_to_k_",
        KOHYA,
        flat(DENOISER, "transformer_blocks_9_attn_to_k"),
    ),
    "Tencent, HunyuanVideo-I2V": Spelling(
        "kohya",
        "Hunyuan_video_I2V_lora_double_blocks_0_img_attn_qkv",
        KOHYA,
        flat(DENOISER, "double_blocks_0_img_attn_qkv"),
    ),
    "flattened, with no prefix": Spelling(
        "dotted-kohya", "blocks_0_attn_to_q", KOHYA, Target(DENOISER, "blocks_0_attn_to_q")
    ),
    "Anima's text adapter, flattened": Spelling(
        "kohya", "lora_unet_llm_adapter_blocks_0_mlp_0", KOHYA, flat(CONDITIONER, "blocks_0_mlp_0")
    ),
    "Anima's text adapter, ComfyUI": Spelling(
        "comfyui", "diffusion_model.llm_adapter.blocks.0.mlp.0", AB, Target(CONDITIONER, "blocks.0.mlp.0")
    ),
    "Anima's text adapter, diffusers": Spelling(
        "diffusers", "text_conditioner.blocks.0.mlp.0", AB, Target(CONDITIONER, "blocks.0.mlp.0")
    ),
    "ai-toolkit, ComfyUI": Spelling(
        "comfyui", f"diffusion_model.{IMAGE}.qkv", AB, Target(DENOISER, f"{IMAGE}.qkv")
    ),
    "ComfyUI, kohya's suffixes": Spelling(
        "comfyui", "diffusion_model.blocks.0.ffn.0", KOHYA, Target(DENOISER, "blocks.0.ffn.0")
    ),
    "ComfyUI, CLIP": Spelling(
        "comfyui", "text_encoders.clip_l.transformer.text_model.a", AB, Target(TEXT, "text_model.a")
    ),
    "ComfyUI, T5": Spelling("comfyui", f"text_encoders.t5xxl.transformer.{T5}", AB, Target(THIRD, T5)),
    "ComfyUI, another text encoder": Spelling(
        "comfyui",
        "text_encoders.qwen3_06b.transformer.model.layers.0.mlp",
        AB,
        Target(TEXT, "model.layers.0.mlp"),
    ),
    "OMI, Flux": Spelling("omi", f"transformer.{IMAGE}.proj", KOHYA, Target("transformer", f"{IMAGE}.proj")),
    "OMI, the first layer": Spelling(
        "dotted-kohya", "transformer.img_in.proj", KOHYA, Target("transformer", "img_in")
    ),
    "OMI, CLIP-L": Spelling("omi", "clip_l.text_model.a", KOHYA, Target(TEXT, "text_model.a")),
    "OMI, CLIP-G": Spelling("omi", "clip_g.text_model.a", KOHYA, Target(SECOND, "text_model.a")),
    "OMI, T5": Spelling("omi", f"t5.{T5}", KOHYA, Target(THIRD, T5)),
    "OMI, SDXL": Spelling(
        "omi", "unet.input_blocks.4.1.proj_in", KOHYA, Target("unet", "input_blocks.4.1.proj_in")
    ),
    "PEFT, original names (fal)": Spelling(
        "peft", f"base_model.model.{IMAGE}.qkv", AB, Target(DENOISER, f"{IMAGE}.qkv")
    ),
    "PEFT within a transformer (SimpleTuner)": Spelling(
        "peft", "transformer.base_model.model.a.to_k", DOTS, Target("transformer", "a.to_k")
    ),
    "PEFT within a UNet (PixArt)": Spelling(
        "peft", "unet.base_model.model.a.to_k", AB, Target("unet", "a.to_k")
    ),
    "two containers": Spelling(
        "diffusers", "transformer.diffusion_model.a.to_k", AB, Target("transformer", "a.to_k")
    ),
    "DiffSynth": Spelling(
        "diffusers",
        "transformer_blocks.0.attn.to_q",
        DEFAULT,
        Target(DENOISER, "transformer_blocks.0.attn.to_q"),
    ),
    "DiffSynth, with the names of its pipeline": Spelling(
        "diffusers", "pipe.dit.blocks.0.self_attn.q", DEFAULT, Target(DENOISER, "blocks.0.self_attn.q")
    ),
    "genmo's Mochi": Spelling(
        "diffusers",
        "transformer_blocks.0.attn1.to_q",
        BARE,
        Target(DENOISER, "transformer_blocks.0.attn1.to_q"),
    ),
    "XLabs, the image's stream": Spelling(
        "xlabs", "double_blocks.0.processor.qkv_lora1", PROCESSOR, Target(DENOISER, f"{IMAGE}.qkv")
    ),
    "XLabs, the text's stream": Spelling(
        "xlabs",
        "diffusion_model.double_blocks.0.processor.proj_lora2",
        PROCESSOR,
        Target(DENOISER, "double_blocks.0.txt_attn.proj"),
    ),
    "XLabs, some rows of a single block": Spelling(
        "xlabs",
        "single_blocks.37.processor.qkv_lora",
        PROCESSOR,
        Target(DENOISER, "single_blocks.37.linear1.0-2"),
    ),
    "XLabs, the second layer of a single block": Spelling(
        "xlabs",
        "single_blocks.37.processor.proj_lora",
        PROCESSOR,
        Target(DENOISER, "single_blocks.37.linear2"),
    ),
    "AnimateDiff": Spelling(
        "attention-processors",
        f"{MOTION}.temporal_transformer.transformer_blocks.0.attention_blocks.1.processor.to_out_lora",
        PROCESSOR,
        Target(DENOISER, f"{MOTION}.transformer_blocks.0.attn2.to_out.0"),
    ),
    "AnimateDiff, wrapped": Spelling(
        "attention-processors",
        f"module.{MOTION}.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.to_q_lora",
        PROCESSOR,
        Target(DENOISER, f"{MOTION}.transformer_blocks.0.attn1.to_q"),
    ),
    "Z-Image, every underscore a dot": Spelling(
        "lora-layers", "layers.0.attention.to.q", DOTS, Target(DENOISER, "layers.0.attention.to_q")
    ),
    "Flux.2, a name cut off": Spelling(
        "diffusers", "sformer_blocks.0.attn.to_q", AB, Target(DENOISER, "transformer_blocks.0.attn.to_q")
    ),
    "Ideogram": Spelling(
        "diffusers", "conditional_transformer.layers.0.a", AB, Target("transformer", "layers.0.a")
    ),
    "Anima's text encoder, converted for ComfyUI": Spelling(
        "diffusers", "text_encoder.qwen3.layers.0.a", AB, Target(TEXT, "layers.0.a")
    ),
    "OneTrainer, HiDream's Llama": Spelling(
        "kohya", "lora_te4_model_layers_0_a", KOHYA, flat("text_encoder_4", "model_layers_0_a")
    ),
    "OMI, a Llama": Spelling(
        "omi", "llama.model.layers.0.a", KOHYA, Target("text_encoder_4", "model.layers.0.a")
    ),
    "OMI, Stable Cascade": Spelling(
        "omi",
        "unet.up_blocks.1.5.attention.attn.in_proj.2",
        KOHYA,
        Target("unet", "up_blocks.1.5.attention.attn.in_proj.2"),
    ),
    "LTX-2's connectors": Spelling(
        "diffusers", "text_embedding_projection.aggregate_embed", AB, Target(CONNECTORS, "text_proj_in")
    ),
    "LTX-2's connectors, beside the transformer": Spelling(
        "comfyui",
        "diffusion_model.video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q",
        AB,
        Target(CONNECTORS, "video_connector.transformer_blocks.0.attn1.to_q"),
    ),
    "LTX-2's connectors, flattened": Spelling(
        "kohya",
        "lora_unet_audio_embeddings_connector_transformer_1d_blocks_1_ff_net_2",
        KOHYA,
        Target(CONNECTORS, "audio_connector_transformer_blocks_1_ff_net_2", flat=True),
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_is_one_dialects_and_means_one_module(name: str, read: Read) -> None:
    dialect, stem, (down, up), target = SPELLINGS[name]
    keys = {f"{stem}.{down}": (2, 6), f"{stem}.{up}": (8, 2)}
    adapter = read(keys)
    assert adapter.dialect == dialect
    assert [entry.target for entry in adapter.entries] == [target]
    assert adapter.entries[0].delta.shape == (8, 6)
    found = find_dialect(TensorFile(dict.fromkeys(keys, adapter.entries[0].delta.tensors()["down"])))
    assert found is not None
    assert found.name == dialect
