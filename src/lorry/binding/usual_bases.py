"""The bases that most adapters are made for."""

from __future__ import annotations

from lorry.binding.base_marks import JOINT, UNET, Base, Mark, mark, sana_feed_forward


def _flux_blocks(double: str, single: str) -> tuple[Mark, ...]:
    """Of FLUX.1, Chroma and HunyuanVideo, whose blocks have such numbers."""
    return (
        mark(rf"^single_transformer_blocks_{single}_(attn_to_[qkv]|proj_mlp|proj_out)$", 3072, 15360),
        mark(rf"^single_blocks_{single}_linear[12]", 3072, 15360),
        mark(rf"^double_blocks_{double}_(img|txt)_(attn|mlp)_", 3072, 12288),
        mark(rf"^{JOINT}{double}_(ff|ff_context)_net_", 3072, 12288, rows=(3072, 12288)),
    )


def _flux_modulation(double: str, single: str) -> tuple[Mark, ...]:
    """Of FLUX.1 and HunyuanVideo; Chroma has none."""
    return (
        mark(
            rf"^(single_transformer_blocks_{single}_norm_linear|single_blocks_{single}_modulation_lin)", 3072
        ),
        mark(rf"^double_blocks_{double}_(img|txt)_mod_lin", 3072),
        mark(rf"^{JOINT}{double}_norm1(_context)?_linear$", 3072, rows=(18432,)),
    )


_FLUX = (r"(\d|1[0-8])", r"([12]?\d|3[0-7])")
"""The numbers of double and of single blocks."""
_HUNYUAN = (r"1?\d", r"[123]?\d")

USUAL_BASES = (
    Base(
        "sdxl",
        "SDXL",
        (
            mark(f"^{UNET}.*attn2_to_[kv]$", 2048),
            mark(f"^{UNET}.*transformer_blocks_[1-9]"),
            mark("^(add_embedding_linear_1|label_emb_0_0)$", 2816),
        ),
        "sdxl_base_v1-0",
        "stable-diffusion-xl-v1-base",
    ),
    Base(
        "sd2",
        "Stable Diffusion 2",
        (mark(f"^{UNET}.*attn2_to_[kv]$", 1024), mark("encoder_layers_.*self_attn_[qkv]_proj$", 1024)),
        "sd_v2",
        "stable-diffusion-v2-768-v",
        diffusers_names=True,
    ),
    Base(
        "sd15",
        "Stable Diffusion 1",
        (mark(f"^{UNET}.*attn2_to_[kv]$", 768),),
        "sd_v1",
        "stable-diffusion-v1",
        diffusers_names=True,
    ),
    Base(
        "sd35-large",
        "Stable Diffusion 3.5 Large",
        (mark(rf"^(joint_blocks_|{JOINT}\d+_(attn|norm1|norm1_context|ff|ff_context)_)", 2432),),
        transformer="SD3Transformer2DModel",
    ),
    Base(
        "sd3",
        "Stable Diffusion 3",
        (mark("^joint_blocks_", 1536), mark(rf"^{JOINT}\d+_attn_(to|add)_.*", 1536, rows=(1536,))),
        "sd3m",
        "stable-diffusion-3-medium",
        transformer="SD3Transformer2DModel",
    ),
    Base(
        "krea2",
        "Krea 2",
        (
            mark("^(text_fusion|txtfusion)_"),
            mark(r"^blocks_\d+_(attn_w[qkvo]|mlp_(gate|up|down))$", 6144, 16384),
            mark(rf"^{JOINT}\d+_(attn_to_gate|ff_(gate|up|down))$", 6144, 16384),
            mark(rf"^{JOINT}\d+_attn_to_[kv]$", 6144, rows=(1536,)),
            mark(rf"^{JOINT}\d+_attn_to_(q|out_0)$", 6144),
        ),
        "krea2",
        transformer="Krea2Transformer2DModel",
    ),
    Base(
        "flux2",
        "FLUX.2",
        (
            mark("(to_qkv_mlp_proj$|double_stream_modulation_)"),
            mark(r"single_blocks_\d+_linear1$", rows=(27648, 36864, 55296)),
            mark(r"^(double|single)_blocks_\d+_", 6144),
            mark(rf"^{JOINT}\d+_attn_", 6144, rows=(6144,)),
            mark(r"^single_transformer_blocks_\d+_attn_", 6144, 24576),
        ),
        transformer="Flux2Transformer2DModel",
        singles=48,
    ),
    Base(
        "flux",
        "FLUX.1",
        (*_flux_blocks(*_FLUX), *_flux_modulation(*_FLUX)),
        "flux1",
        "flux-1-dev",
        transformer="FluxTransformer2DModel",
        singles=38,
        like="flux",
    ),
    Base(
        "chroma",
        "Chroma",
        (mark("^distilled_guidance_layer_"), *_flux_blocks(*_FLUX)),
        transformer="ChromaTransformer2DModel",
        singles=38,
        like="flux",
    ),
    Base(
        "hunyuan-video",
        "HunyuanVideo",
        (
            mark(r"^double_blocks_\d+_(img|txt)_mlp_fc[12]$", 3072, 12288),
            mark("^context_embedder_token_refiner_", 3072, 12288),
            *_flux_blocks(*_HUNYUAN),
            *_flux_modulation(*_HUNYUAN),
        ),
        transformer="HunyuanVideoTransformer3DModel",
        singles=40,
        like="flux",
    ),
    Base(
        "qwen-image",
        "Qwen-Image",
        (
            mark(rf"^{JOINT}\d+_(img|txt)_m(od|lp)_", 3072, 12288),
            mark(rf"^{JOINT}(2\d|[345]\d)_attn_", 3072),
        ),
    ),
    Base(
        "auraflow",
        "AuraFlow",
        (
            mark(r"^(joint_transformer_blocks|(double|single)_layers)_\d+_", 3072),
            mark(r"^single_transformer_blocks_\d+_(ff_(linear_[12]|out_projection)|norm1_linear)$"),
            mark(r"^single_transformer_blocks_([12]?\d|3[01])_attn_to_([qkv]|out_0)$", 3072),
        ),
        transformer="AuraFlowTransformer2DModel",
        singles=32,
    ),
    Base(
        "cogvideox-2b",
        "CogVideoX 2B",
        (
            mark(r"^((transformer_)?layers_\d+_attention|transformer_blocks_\d+_attn1)_", 1920),
            mark(r"^transformer_blocks_\d+_norm[12]_linear$", 512, rows=(11520,)),
        ),
        transformer="CogVideoXTransformer3DModel",
    ),
    Base(
        "cogvideox-5b",
        "CogVideoX 5B",
        (
            mark(r"^(transformer_)?layers_\d+_attention_(query_key_value|dense)", 3072),
            mark(r"^transformer_blocks_\d+_norm[12]_linear$", 512, rows=(18432,)),
            mark(r"^transformer_blocks_\d+_ff_net_", 3072, 12288, rows=(3072, 12288)),
        ),
        transformer="CogVideoXTransformer3DModel",
    ),
    Base(
        "wan-1.3b",
        "Wan 2.1 1.3B",
        (mark(r"^blocks_\d+_(self_attn_[qkvo]|cross_attn_[qkvo]|attn[12]_to_[qkv])$", 1536),),
        transformer="WanTransformer3DModel",
    ),
    Base(
        "wan",
        "Wan 14B",
        (mark(r"^blocks_\d+_(self_attn_[qkvo]|cross_attn_[qkvo]|attn[12]_to_[qkv]|ffn_\w+)$", 5120, 13824),),
        transformer="WanTransformer3DModel",
    ),
    Base(
        "ltx-video",
        "LTX-Video",
        (
            mark(r"^transformer_blocks_\d+_attn[12]_to_([qkv]|out_0)$", 2048, rows=(2048,)),
            mark(r"^transformer_blocks_\d+_ff_net_", 2048, 8192, rows=(2048, 8192)),
        ),
        transformer="LTXVideoTransformer3DModel",
    ),
    Base(
        "z-image",
        "Z-Image",
        (mark(r"^layers_\d+_(attention|feed_forward)_", 3840),),
        transformer="ZImageTransformer2DModel",
    ),
    Base(
        "sana",
        "Sana 1.6B",
        (
            mark(r"^(transformer_)?blocks_\d+_(attn|cross_attn|attn[12])_\w+", 2240),
            *sana_feed_forward(2240, 5600),
        ),
        transformer="SanaTransformer2DModel",
    ),
    Base(
        "lumina2",
        "Lumina 2",
        (mark(r"^layers_\d+_(attention|attn|feed_forward)_", 2304),),
        transformer="Lumina2Transformer2DModel",
    ),
    Base("hidream", "HiDream", (mark("^(double|single)_stream_blocks_"),)),
    Base(
        "ltx2",
        "LTX-2",
        (
            mark(r"^transformer_blocks_\d+_(audio_|video_to_audio_)"),
            mark(r"^transformer_blocks_\d+_(attn[12]_to_([qkv]|out_0)|ff_net_0_proj|ff_net_2)$", 4096, 16384),
        ),
        transformer="LTX2VideoTransformer3DModel",
    ),
)
"""Of those that share layers, the likeliest first.

Sources of the sizes: the configurations of the published checkpoints. Of the names in headers: kohya-ss/sd-scripts,
`library/sai_model_spec.py` and `library/train_util.py`; where nothing is known of those, there is none."""
