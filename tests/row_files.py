"""Every row of dialects that is known of: a file of each program for each architecture."""

from __future__ import annotations

import json
from collections.abc import Mapping

from row_layers import (
    ANIMA,
    ANIMA_TEXT,
    ATTENTION,
    BFL,
    BFL_BLOCKS,
    CASCADE_OMI,
    CASCADE_TORCH,
    CHROMA,
    CLIP,
    CLIP_2,
    DIFFSYNTH,
    DOWN,
    FLUX,
    FLUX2,
    FLUX2_OWN,
    FLUX3,
    HIDREAM,
    HUNYUAN_IMAGE,
    HUNYUAN_OMI,
    HUNYUAN_VIDEO,
    HUNYUAN_VIDEO_OWN,
    IDEOGRAM,
    IDEOGRAM_OWN,
    KREA2,
    KREA2_FUSED,
    KREA2_OWN,
    LTX,
    LTX2,
    LTX2_CONNECTORS,
    LUMINA2,
    MINIMAX,
    OMI_CHROMA,
    OMI_FLUX,
    OMI_PIXART,
    OTHERS,
    QWEN,
    SD3,
    SD3_OWN,
    SGM,
    UNET,
    WAN,
    WAN_OWN,
    XLABS,
    Z_IMAGE,
    Z_IMAGE_DOTS,
    Z_IMAGE_OWN,
    t5,
    tails,
)  # fmt: skip
from rows import (
    BARE,
    DEFAULT,
    DOTS,
    KOHYA,
    LINEAR_LAYER,
    PROCESSOR,
    Part,
    Row,
    flattened,
    own,
    renamed,
)  # fmt: skip

COMFY, FOLDER = "diffusion_model.", "base_model.model."
CLIP_COMFY, T5_COMFY = "text_encoders.clip_l.transformer.", "text_encoders.t5xxl.transformer."


def kohya(layers: Mapping[str, str], prefix: str = "lora_unet_", **kwargs: object) -> Part:
    return Part(flattened(layers, prefix), KOHYA, True, **kwargs)  # pyright: ignore[reportArgumentType]


def comfy(layers: Mapping[str, str]) -> Part:
    return Part(renamed(layers, COMFY))


def omi(layers: Mapping[str, str], prefix: str = "transformer.") -> Part:
    return Part(renamed(layers, prefix), KOHYA, True)


def old_processors(layers: Mapping[str, str], prefix: str) -> Part:
    """`….attn1.to_out.0` as `….attn1.processor.to_out_lora`."""
    spelled = {
        stem.removesuffix(".0").replace(".to_", ".processor.to_") + "_lora": module
        for stem, module in layers.items()
    }
    return Part(renamed(spelled, prefix), PROCESSOR)


CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["to_q"]}
HEADER = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 3})}
STABLE = {"peft_type": "LORA", "r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ["to_q"]}
OLD_CLIP = {
    "encoder.layers.0.self_attn.to_q_lora": "text_encoder/encoder.layers.0.self_attn.q_proj",
    "encoder.layers.0.self_attn.to_out_lora": "text_encoder/encoder.layers.0.self_attn.out_proj",
}
MOTION = "down_blocks.0.motion_modules.0"
ANIMATED = {
    f"{MOTION}.temporal_transformer.transformer_blocks.0.attention_blocks.{i}.processor.{part}_lora": (
        f"unet/{MOTION}.transformer_blocks.0.attn{i + 1}.{layer}"
    )
    for i in (0, 1)
    for part, layer in (("to_q", "to_q"), ("to_out", "to_out.0"))
}
DISTILLED = kohya(UNET)._replace(rank=64)
NO_DORA = ("kohya", "comfyui", "lora-layers")
"""What does not carry DoRAs of some of the layers that the original has fused: `lora-layers` no DoRA at all."""
SPLIT = kohya({"double_blocks.0.img_attn.qkv": BFL_BLOCKS["double_blocks.0.img_attn.qkv"]})._replace(rank=6)

ROWS: dict[str, Row] = {
    "1 kohya, SD 1": Row("sd", [kohya(UNET), kohya(CLIP, "lora_te_")], "kohya"),
    "1 kohya, SDXL": Row(
        "sdxl", [kohya(UNET), kohya(CLIP, "lora_te1_"), kohya(CLIP_2, "lora_te2_")], "kohya"
    ),
    "2 kohya, SGM": Row("sdxl", [kohya(SGM), kohya(CLIP_2, "lora_te2_")], "kohya"),
    "3 LyCORIS": Row("sd", [kohya(UNET, "lycoris_")], "lycoris"),
    "5 diffusers": Row(
        "sdxl", [Part(renamed(UNET, "unet.")), Part(renamed(CLIP_2, "text_encoder_2."))], "diffusers"
    ),
    "5 diffusers, alpha in the header": Row(
        "sd", [Part(renamed(UNET, "unet."))], "diffusers", metadata=HEADER, scale=1.5
    ),
    "6 lora layers": Row(
        "sd",
        [Part(renamed(UNET, "unet."), DOTS), Part(renamed(CLIP, "text_encoder."), LINEAR_LAYER)],
        "lora-layers",
    ),
    "7 processors": Row(
        "sd",
        [old_processors(ATTENTION, "unet."), Part(renamed(OLD_CLIP, "text_encoder.text_model."), PROCESSOR)],
        "attention-processors",
        more=("attention-processors",),
    ),
    "7 processors without a component": Row(
        "sd", [old_processors(ATTENTION, "")], "attention-processors", more=("attention-processors",)
    ),
    "8 PEFT": Row("sd", [Part(renamed(ATTENTION, FOLDER))], "peft", config=CONFIG, scale=1.5),
    "8 PEFT, rank-stabilised": Row(
        "sd", [Part(renamed(ATTENTION, FOLDER), rank=4)], "peft", config=STABLE, scale=1.5
    ),
    "11 OneTrainer": Row("sdxl", [kohya(UNET, magnitude="dora_scale"), kohya(CLIP_2, "lora_te2_")], "kohya"),
    "12 Stable Cascade": Row(
        "StableCascadePriorPipeline",
        [
            kohya(
                own("prior", "down_blocks.0.2.attention.to_q", "down_blocks.0.1.mapper"), "lora_prior_unet_"
            ),
            kohya(CLIP, "lora_prior_te_"),
        ],
        "kohya",
        less=("onetrainer",),
    ),
    "12 Stable Cascade, OneTrainer": Row(
        "StableCascadePriorPipeline",
        [kohya(CASCADE_TORCH, "lora_prior_unet_"), kohya(CLIP, "lora_prior_te_")],
        "kohya",
        less=("onetrainer",),
    ),
    "12 Stable Cascade, OMI": Row(
        "StableCascadePriorPipeline",
        [omi(CASCADE_OMI, "unet."), omi(CLIP, "clip_g.")],
        "omi",
        less=("onetrainer",),
    ),
    "13 AnimateDiff": Row(
        "AnimateDiffPipeline",
        [Part(ANIMATED, PROCESSOR)],
        "attention-processors",
        more=("attention-processors",),
    ),
    "13 AnimateDiff, nested": Row(
        "AnimateDiffPipeline",
        [Part(renamed(ANIMATED, "module."), PROCESSOR)],
        "attention-processors",
        nested=True,
        more=("attention-processors",),
    ),
    "15 distilled": Row("sd", [DISTILLED], "kohya"),
    "16 OMI, SDXL": Row("sdxl", [omi(SGM, "unet."), omi(CLIP, "clip_l."), omi(CLIP_2, "clip_g.")], "omi"),
    "16 OMI, Flux": Row(
        "flux", [omi(OMI_FLUX), omi(CLIP, "clip_l."), omi(t5("text_encoder_2"), "t5.")], "omi"
    ),
    "16 OMI, SD3": Row(
        "sd3",
        [omi(tails(SD3)), omi(CLIP, "clip_l."), omi(CLIP_2, "clip_g."), omi(t5("text_encoder_3"), "t5.")],
        "omi",
    ),
    "16 OMI, Chroma": Row("ChromaPipeline", [omi(OMI_CHROMA), omi(t5("text_encoder"), "t5.")], "omi"),
    "16 OMI, HiDream": Row("HiDreamImagePipeline", [omi(HIDREAM)], "dotted-kohya"),
    "16 OMI, PixArt": Row("PixArtAlphaPipeline", [omi(OMI_PIXART)], "omi"),
    "17 kohya, Flux": Row(
        "flux", [kohya(BFL), kohya(CLIP, "lora_te1_"), kohya(t5("text_encoder_2"), "lora_te3_")], "kohya"
    ),
    "17 OneTrainer, Flux": Row("flux", [kohya(BFL), kohya(t5("text_encoder_2"), "lora_te2_")], "kohya"),
    "18 split_qkv": Row("flux", [SPLIT], "kohya"),
    "19 BFL dotted": Row(
        "flux",
        [comfy(BFL), Part(renamed(CLIP, CLIP_COMFY)), Part(renamed(t5("text_encoder_2"), T5_COMFY))],
        "comfyui",
    ),
    "20 diffusers, Flux": Row(
        "flux",
        [Part(renamed(FLUX, "transformer."), alpha=True), Part(renamed(CLIP, "text_encoder."))],
        "diffusers",
    ),
    "20 diffusers, Flux, DoRA": Row(
        "flux",
        [Part(renamed(FLUX, "transformer."), magnitude="lora_magnitude_vector.weight")],
        "diffusers",
        less=NO_DORA,
    ),
    "20 diffusers, Flux, bias": Row(
        "flux",
        [Part(renamed(FLUX, "transformer."), bias="lora_B.bias")],
        "diffusers",
        less=("onetrainer", "omi", "dotted-kohya", "lora-layers"),
    ),
    "21 Civitai": Row("flux", [Part(renamed(FLUX, "transformer."), KOHYA, True)], "dotted-kohya"),
    "22 PEFT, Flux": Row("flux", [Part(renamed(FLUX, FOLDER))], "peft", config=CONFIG, scale=1.5),
    "23 PEFT, BFL": Row("flux", [Part(renamed(BFL_BLOCKS, FOLDER))], "peft", config=CONFIG, scale=1.5),
    "24 XLabs": Row("flux", [Part(XLABS, PROCESSOR)], "xlabs"),
    "24 XLabs, ComfyUI": Row("flux", [Part(renamed(XLABS, COMFY), PROCESSOR)], "xlabs"),
    "26 OneTrainer mixture": Row(
        "flux",
        [
            kohya(FLUX, "lora_transformer_", magnitude="dora_scale"),
            kohya(CLIP, "lora_te1_"),
            kohya(t5("text_encoder_2"), "lora_te2_"),
        ],
        "onetrainer",
        less=("kohya", "comfyui"),
    ),
    "27 OneTrainer BFL": Row("flux", [omi(tails(BFL_BLOCKS))], "omi"),
    "28 DiffSynth": Row("flux", [Part(FLUX, DEFAULT)], "diffusers"),
    "28 DiffSynth, its own names": Row("flux", [Part(DIFFSYNTH, DEFAULT)], "diffusers"),
    "31 SimpleTuner": Row("flux", [Part(renamed(FLUX, f"transformer.{FOLDER}"), DOTS)], "peft"),
    "32 USO": Row("flux", [Part(XLABS, PROCESSOR)], "xlabs"),
    "33 SD3, kohya": Row(
        "sd3",
        [
            kohya(SD3),
            kohya(CLIP, "lora_te1_"),
            kohya(CLIP_2, "lora_te2_"),
            kohya(t5("text_encoder_3"), "lora_te3_"),
        ],
        "kohya",
    ),
    "33 SD3, OneTrainer": Row("sd3", [kohya(SD3_OWN, "lora_transformer_")], "onetrainer"),
    "33 SD3, diffusers": Row("sd3", [Part(renamed(SD3_OWN, "transformer."))], "diffusers"),
    "33 SD3, PEFT": Row("sd3", [Part(renamed(SD3_OWN, FOLDER))], "peft"),
    "33 SD3, LyCORIS": Row("sd3", [kohya(SD3_OWN, "lycoris_")], "lycoris"),
    "34 Flux.2, ai-toolkit": Row("Flux2Pipeline", [comfy(FLUX2)], "comfyui"),
    "34 Flux.2, kohya": Row("Flux2Pipeline", [kohya(FLUX2)], "kohya"),
    "34 Flux.2, PEFT": Row("Flux2Pipeline", [Part(renamed(FLUX2_OWN, FOLDER))], "peft"),
    "34 Flux.2, cut names": Row(
        "Flux2Pipeline",
        [Part({"sformer_blocks.0.attn.to_q": "transformer/transformer_blocks.0.attn.to_q"})],
        "diffusers",
    ),
    "34 Flux.2, LyCORIS": Row("Flux2Pipeline", [kohya(FLUX2_OWN, "lycoris_")], "lycoris"),
    "35 Flux.3": Row("Flux3ModularPipeline", [comfy(FLUX3)], "comfyui"),
    "36 Chroma, kohya": Row(
        "ChromaPipeline", [kohya(CHROMA), kohya(t5("text_encoder"), "lora_te1_")], "kohya"
    ),
    "36 Chroma, ComfyUI": Row("ChromaPipeline", [comfy(CHROMA)], "comfyui"),
    "37 Qwen-Image, bare": Row("QwenImagePipeline", [Part(QWEN, KOHYA, True)], "dotted-kohya"),
    "37 Qwen-Image, ComfyUI": Row("QwenImagePipeline", [comfy(QWEN)], "comfyui"),
    "37 Qwen-Image, kohya": Row("QwenImagePipeline", [kohya(QWEN)], "kohya"),
    "37 Qwen-Image, LyCORIS": Row("QwenImagePipeline", [kohya(QWEN, "lycoris_")], "lycoris"),
    "37 Qwen-Image, default": Row("QwenImagePipeline", [Part(QWEN, DEFAULT)], "diffusers"),
    "38 Z-Image, ComfyUI": Row("ZImagePipeline", [comfy(Z_IMAGE_OWN)], "comfyui"),
    "38 Z-Image, fused": Row("ZImagePipeline", [kohya(Z_IMAGE)], "kohya"),
    "38 Z-Image, two underscores": Row("ZImagePipeline", [kohya(Z_IMAGE_OWN, "lora_unet__")], "kohya"),
    "38 Z-Image, dots": Row("ZImagePipeline", [Part(Z_IMAGE_DOTS, DOTS)], "lora-layers"),
    "39 Lumina 2, ComfyUI": Row("Lumina2Pipeline", [comfy(LUMINA2)], "comfyui"),
    "39 Lumina 2, kohya": Row("Lumina2Pipeline", [kohya(LUMINA2)], "kohya"),
    "40 Wan, ComfyUI": Row("wan", [comfy(WAN)], "comfyui"),
    "40 Wan, ComfyUI, kohya": Row(
        "wan",
        [Part(renamed(WAN, COMFY), KOHYA, True, bias="diff_b")],
        "comfyui",
        less=("onetrainer", "dotted-kohya", "peft", "diffusers"),
    ),
    "40 Wan, musubi": Row("wan", [kohya(WAN)], "kohya"),
    "40 Wan-Fun": Row("wan", [kohya(WAN, "lora_unet__")], "kohya"),
    "40 Wan, diffusers": Row("wan", [Part(renamed(WAN_OWN, "transformer."))], "diffusers"),
    "40 Wan, PEFT": Row("wan", [Part(renamed(WAN_OWN, f"{FOLDER}transformer."))], "peft"),
    "41 HunyuanVideo, ComfyUI": Row("HunyuanVideoPipeline", [comfy(HUNYUAN_VIDEO)], "comfyui"),
    "41 HunyuanVideo, original": Row(
        "HunyuanVideoPipeline", [Part(renamed(HUNYUAN_VIDEO, "transformer."))], "diffusers"
    ),
    "41 HunyuanVideo, kohya": Row("HunyuanVideoPipeline", [kohya(HUNYUAN_VIDEO)], "kohya"),
    "41 HunyuanVideo, OMI": Row("HunyuanVideoPipeline", [omi(HUNYUAN_OMI)], "omi"),
    "41 FramePack": Row("HunyuanVideoFramepackPipeline", [kohya(HUNYUAN_VIDEO_OWN)], "kohya"),
    "42 HunyuanImage": Row("HunyuanImagePipeline", [kohya(HUNYUAN_IMAGE)], "kohya"),
    "43 LTX": Row("LTXPipeline", [comfy(LTX)], "comfyui"),
    "43 LTX-2": Row(
        "LTX2Pipeline",
        [
            comfy(LTX2),
            comfy(LTX2_CONNECTORS),
            Part({"text_embedding_projection.aggregate_embed": "connectors/text_proj_in"}),
        ],
        "comfyui",
        less=("onetrainer", "lycoris"),
    ),
    "43 LTX-2, kohya": Row(
        "LTX2Pipeline",
        [
            kohya(LTX2),
            kohya(LTX2_CONNECTORS),
            kohya({"text_embedding_projection.aggregate_embed": "connectors/text_proj_in"}),
        ],
        "kohya",
        less=("onetrainer", "lycoris"),
    ),
    "44 HiDream, ComfyUI": Row("HiDreamImagePipeline", [comfy(HIDREAM)], "comfyui"),
    "44 HiDream, LyCORIS": Row("HiDreamImagePipeline", [kohya(HIDREAM, "lycoris_")], "lycoris"),
    "44 HiDream, diffusers": Row(
        "HiDreamImagePipeline", [Part(renamed(HIDREAM, "transformer."))], "diffusers"
    ),
    "45 Anima, kohya": Row(
        "AnimaModularPipeline", [kohya(ANIMA), kohya(ANIMA_TEXT)], "kohya", less=("lycoris", "onetrainer")
    ),
    "45 Anima, ComfyUI": Row(
        "AnimaModularPipeline", [comfy(ANIMA), comfy(ANIMA_TEXT)], "comfyui", less=("lycoris", "onetrainer")
    ),
    "46 Krea 2, ComfyUI": Row("Krea2Pipeline", [comfy(KREA2)], "comfyui"),
    "46 Krea 2, kohya": Row("Krea2Pipeline", [kohya(KREA2)], "kohya"),
    "46 Krea 2, fused": Row("Krea2Pipeline", [kohya(KREA2_FUSED, "lycoris_")], "lycoris"),
    "46 Krea 2, PEFT": Row("Krea2Pipeline", [Part(renamed(KREA2_OWN, FOLDER))], "peft"),
    "46 Krea 2, diffusers": Row("Krea2Pipeline", [Part(renamed(KREA2_OWN, "transformer."))], "diffusers"),
    "47 Ideogram, ComfyUI": Row("Ideogram4Pipeline", [comfy(IDEOGRAM)], "comfyui"),
    "47 Ideogram, conditional": Row(
        "Ideogram4Pipeline", [Part(renamed(IDEOGRAM_OWN, "conditional_transformer."))], "diffusers"
    ),
    "48 MiniMax-H3": Row("MiniMaxH3ModularPipeline", [Part(MINIMAX)], "diffusers"),
    "49 ACE-Step": Row(
        "AceStepPipeline",
        [
            Part(
                renamed(
                    {
                        "layers.0.self_attn.q_proj": "transformer/layers.0.self_attn.to_q",
                        "layers.0.cross_attn.o_proj": "transformer/layers.0.cross_attn.to_out.0",
                        "layers.0.mlp.up_proj": "transformer/layers.0.mlp.up_proj",
                    },
                    FOLDER,
                )
            )
        ],
        "peft",
    ),
    "49 Mochi": Row(
        "MochiPipeline",
        [
            Part(
                own(
                    "transformer", "transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.add_k_proj"
                ),
                BARE,
            )
        ],
        "diffusers",
    ),
    "49 PixArt": Row(
        "PixArtAlphaPipeline",
        [Part(renamed(own("transformer", "transformer_blocks.0.attn1.to_q"), f"unet.{FOLDER}"))],
        "peft",
    ),
    **{
        f"49 {name}": Row(name, [Part(renamed(own("transformer", *paths), "transformer."))], "diffusers")
        for name, paths in OTHERS.items()
    },
    "51 an adapter's name": Row(
        "sd", [Part(renamed(ATTENTION, FOLDER), DEFAULT)], "peft", more=("attention-processors",)
    ),
    "52 wrappers": Row("flux", [Part(renamed(FLUX, f"module.transformer._orig_mod.{FOLDER}"))], "peft"),
    "56 bookkeeping": Row("sd", [kohya({f"{DOWN}.attn1.to_q": f"unet/{DOWN}.attn1.to_q"})], "kohya"),
}
