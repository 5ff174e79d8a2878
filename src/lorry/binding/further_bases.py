"""Bases that fewer adapters are made for; those that share layers with usual ones are asked after them."""

from __future__ import annotations

from lorry.binding.base_marks import JOINT, UNET, Base, Mark, mark, sana_feed_forward


def _hunyuan(width: int) -> tuple[Mark, ...]:
    """Of a model whose double blocks are built as HunyuanVideo's are, with another width."""
    hidden = 4 * width
    return (
        mark(rf"^{JOINT}\d+_(attn_(to|add)_|norm1_linear$|norm1_context_)", width),
        mark(rf"^{JOINT}\d+_(ff|ff_context)_net_", width, hidden, rows=(width, hidden)),
        mark(r"^double_blocks_\d+_(img|txt)_", width, hidden),
        mark(r"^(context_embedder_token_refiner|txt_in_individual_token_refiner)_", width, hidden),
    )


def _hunyuan_singles(width: int) -> tuple[Mark, ...]:
    both = 5 * width
    return (
        mark(r"^single_transformer_blocks_\d+_(attn_to_[qkv]|proj_mlp|proj_out|norm_linear)$", width, both),
        mark(r"^single_blocks_\d+_(linear|modulation)", width, both),
    )


def _wan(width: int, hidden: int) -> Mark:
    return mark(r"^blocks_\d+_(self_attn_[qkvo]|cross_attn_[qkvo]|attn[12]_to_[qkv]|ffn_\w+)$", width, hidden)


def _wan_picture(*widths: int) -> tuple[Mark, ...]:
    """Of a Wan that takes a picture by layers of its own."""
    return (
        mark(r"^blocks_\d+_(cross_attn_[kv]_img|attn2_add_[kv]_proj)$", *widths),
        mark("^(img_emb_proj|condition_embedder_image_embedder)_"),
    )


def _pixart(width: int) -> tuple[Mark, ...]:
    return (
        mark(r"^transformer_blocks_\d+_attn[12]_to_([qkv]|out_0)$", width),
        mark(r"^blocks_\d+_(attn_(qkv|proj)|cross_attn_(q_linear|kv_linear|proj))$", width),
    )


def _cosmos(width: int) -> tuple[Mark, ...]:
    hidden = 4 * width
    return (
        mark(r"^transformer_blocks_\d+_(attn1_to_[qkv]|attn2_to_q|attn[12]_to_out_0)$", width),
        mark(r"^transformer_blocks_\d+_attn2_to_[kv]$", 1024, rows=(width,)),
        mark(r"^transformer_blocks_\d+_ff_net_", width, hidden, rows=(width, hidden)),
        mark(r"^blocks_\d+_(self|cross)_attn_(q|k|v|output)_proj$", width),
        mark(r"^blocks_\d+_mlp_layer[12]$", width, hidden),
        mark(r"^blocks_block\d+_blocks_\d_block_", width, hidden),
    )


def _cogview(width: int) -> tuple[Mark, ...]:
    hidden = 4 * width
    return (
        mark(r"^transformer_blocks_\d+_attn1_to_([qkv]|out_0)$", width),
        mark(r"^transformer_blocks_\d+_ff_net_", width, hidden, rows=(width, hidden)),
        mark(r"^transformer_blocks_\d+_norm1_linear$", 512, rows=(12 * width,)),
        mark(r"^(transformer_)?layers_\d+_attention_(query_key_value|dense)$", width),
        mark(r"^(transformer_)?layers_\d+_mlp_dense_(h_to_4h|4h_to_h)$", width, hidden),
    )


_AUDIO = r"^(transformer_)?layers_\d+_"
"""How a layer of stable-audio-tools begins."""


def _stable_audio_3(width: int) -> tuple[Mark, ...]:
    """Of one of Stable Audio 3's sizes, what its layers are in diffusers and what the first has not."""
    return (
        mark(r"^transformer_blocks_\d+_(self|cross)_attn_to_(q|kv|qkv|out)$", width),
        mark(r"^transformer_blocks_\d+_ff_proj_(in|out)$", width, 4 * width, rows=(width, 8 * width)),
        mark(
            r"^(transformer_blocks|(transformer_)?layers)_\d+_to_local_embed_\d$", 257, width, rows=(width,)
        ),
    )


FURTHER_BASES = (
    Base(
        "svd",
        "Stable Video Diffusion",
        (
            mark(f"^{UNET}.*(temporal_transformer_blocks|temporal_res_block|spatial_res_block)_"),
            mark(f"^{UNET}.*_time_(stack|pos_embed)_"),
        ),
        variant_of=("sd2",),
    ),
    Base(
        "modelscope-video",
        "ModelScope's text-to-video",
        (
            mark(r"(^transformer_in_|_temp_attentions_|_temp_convs_|_temopral_conv_)"),
            mark(r"^((in|out)put_blocks_\d+|middle_block)_2_(transformer_blocks|proj_in|proj_out|norm)"),
        ),
        variant_of=("sd2",),
    ),
    Base("animatediff", "AnimateDiff", (mark("_motion_modules_"),), variant_of=("sd15", "sdxl")),
    Base(
        "wan-5b",
        "Wan 2.2 5B",
        (_wan(3072, 14336),),
        transformer="WanTransformer3DModel",
    ),
    Base(
        "wan-vace-1.3b",
        "Wan 2.1 VACE 1.3B",
        (mark(r"^vace_blocks_\d+_", 1536, 8960),),
        transformer="WanVACETransformer3DModel",
        variant_of=("wan-1.3b",),
    ),
    Base(
        "wan-vace",
        "Wan VACE 14B",
        (mark(r"^vace_blocks_\d+_", 5120, 13824),),
        transformer="WanVACETransformer3DModel",
        variant_of=("wan",),
    ),
    Base(
        "wan-i2v",
        "Wan 2.1 I2V",
        _wan_picture(5120),
        transformer="WanTransformer3DModel",
        like="wan-i2v",
        variant_of=("wan",),
    ),
    Base(
        "wan-animate",
        "Wan 2.2 Animate",
        (mark("^(face_adapter|face_encoder|motion_encoder|pose_patch_embedding)"), *_wan_picture(5120)),
        transformer="WanAnimateTransformer3DModel",
        like="wan-i2v",
        variant_of=("wan",),
    ),
    Base(
        "chronoedit",
        "ChronoEdit",
        _wan_picture(5120),
        transformer="ChronoEditTransformer3DModel",
        like="wan-i2v",
        variant_of=("wan",),
    ),
    Base(
        "wan-fun-1.3b",
        "Wan 2.1 Fun 1.3B InP",
        _wan_picture(1536),
        transformer="WanTransformer3DModel",
        like="wan-i2v",
        variant_of=("wan-1.3b",),
    ),
    Base(
        "sana-video",
        "SANA-Video",
        (
            *_pixart(2240),
            *sana_feed_forward(2240, 6720),
            mark(r"^(transformer_)?blocks_\d+_(ff_conv_temp|mlp_t_conv)$"),
        ),
        transformer="SanaVideoTransformer3DModel",
        like="sana",
    ),
    Base(
        "sana-wm",
        "SANA-WM",
        (
            mark("^(raymap_embedder|plucker_embedder)_"),
            mark(r"^blocks_\d+_(plucker_proj|attn_(beta_proj|gate_proj|output_gate|([qkv]|out)_proj_cam))$"),
        ),
        transformer="SanaWMTransformer3DModel",
        variant_of=("sana", "sana-video"),
    ),
    Base(
        "framepack",
        "FramePack",
        (mark("^(clean_x_embedder|image_projection)_"),),
        transformer="HunyuanVideoFramepackTransformer3DModel",
        variant_of=("hunyuan-video",),
    ),
    Base(
        "hunyuan-video-1.5",
        "HunyuanVideo 1.5",
        _hunyuan(2048),
        transformer="HunyuanVideo15Transformer3DModel",
    ),
    Base(
        "nucleus-image",
        "NucleusMoE-Image",
        (
            mark(rf"^{JOINT}\d+_attn_(to|add)_", 2048),
            mark(rf"^{JOINT}\d+_(encoder_proj$|img_mlp_(gate$|shared_expert_))"),
        ),
    ),
    Base(
        "minimax-music",
        "MiniMax Music 3",
        (
            mark(rf"^{JOINT}\d+_attn_to_([qkv]|out_0)$", 2048, rows=(2048,)),
            mark(rf"^{JOINT}\d+_ff_(in|out)$", 2048, 8192, rows=(2048, 16384)),
        ),
        transformer="MiniMaxMusic3Transformer1DModel",
    ),
    Base(
        "hunyuan-image",
        "HunyuanImage 2.1",
        (*_hunyuan(3584), *_hunyuan_singles(3584)),
        transformer="HunyuanImageTransformer2DModel",
        singles=40,
    ),
    Base(
        "hunyuan-dit",
        "HunyuanDiT",
        (mark(r"^blocks_\d+_(attn[12]|ff|mlp|norm1|default_modulation|skip)_", 1408, 2816, 6144),),
        transformer="HunyuanDiT2DModel",
    ),
    Base(
        "pixart",
        "PixArt",
        (
            *_pixart(1152),
            mark(r"^(transformer_blocks_\d+_ff_net_(0_proj|2)|blocks_\d+_mlp_fc[12])$", 1152, 4608),
        ),
        transformer="PixArtTransformer2DModel",
        like="pixart",
    ),
    Base(
        "sana-600m",
        "Sana 0.6B",
        (*_pixart(1152), *sana_feed_forward(1152, 2880)),
        transformer="SanaTransformer2DModel",
        like="pixart",
    ),
    Base(
        "dit",
        "DiT",
        (
            mark(r"^transformer_blocks_\d+_norm1_emb_timestep_embedder_linear_\d$", 256, 1152, rows=(1152,)),
            mark(r"^transformer_blocks_\d+_norm1_linear$", 1152, rows=(6912,)),
            mark(r"^proj_out_1$", 1152, rows=(2304,)),
        ),
        variant_of=("pixart",),
    ),
    Base(
        "sd3-1152",
        "Stable Diffusion 3 of width 1152",
        (
            mark(rf"^{JOINT}\d+_(attn_(to|add)_|ff_context_net_)", 1152, 4608, rows=(1152, 4608)),
            mark(rf"^{JOINT}\d+_norm1(_context)?_linear$", 1152, rows=(6912,)),
        ),
        transformer="SD3Transformer2DModel",
        variant_of=("pixart",),
    ),
    Base("latte", "Latte", (mark("^temporal_transformer_blocks_"),), variant_of=("pixart",)),
    Base(
        "easyanimate",
        "EasyAnimate 5",
        (
            mark(
                r"^transformer_blocks_\d+_(txt_ff_|attn1_(add_[qkv]_proj|to_add_out)$)",
                3072,
                12288,
                rows=(3072, 12288),
            ),
            mark(r"^transformer_blocks_\d+_attn2_to_([qkv]|out_0)$", 3072),
        ),
        transformer="EasyAnimateTransformer3DModel",
        variant_of=("cogvideox-5b",),
    ),
    Base("cosmos-2b", "Cosmos Predict2 2B or Anima", _cosmos(2048), transformer="CosmosTransformer3DModel"),
    Base("cosmos-7b", "Cosmos 7B", _cosmos(4096), transformer="CosmosTransformer3DModel"),
    Base("cosmos-14b", "Cosmos 14B", _cosmos(5120), transformer="CosmosTransformer3DModel"),
    Base("cogview4", "CogView4", _cogview(4096), transformer="CogView4Transformer2DModel"),
    Base("cogview3", "CogView3 Plus", _cogview(2560), transformer="CogView3PlusTransformer2DModel"),
    Base(
        "mochi",
        "Mochi 1",
        (
            mark(r"^blocks_\d+_(attn_(qkv|proj)_[xy]|mod_[xy]|mlp_[xy]_w[12])$"),
            mark(r"^transformer_blocks_\d+_attn1_add_[qkv]_proj$", 1536, rows=(3072,)),
            mark(r"^transformer_blocks_\d+_attn1_to_add_out$", 3072, rows=(1536,)),
            mark(rf"^{JOINT}\d+_(norm1|norm1_context)_linear$", 3072, rows=(6144, 12288)),
        ),
        transformer="MochiTransformer3DModel",
    ),
    Base(
        "stable-audio",
        "Stable Audio",
        (
            mark(r"^transformer_blocks_\d+_attn[12]_to_(q|out_0)$", 1536),
            mark(r"^(transformer_)?layers_\d+_(self|cross)_attn_to_(q|qkv|out)$", 1536, rows=(1536, 4608)),
        ),
        transformer="StableAudioDiTModel",
    ),
    Base(
        "stable-audio-3",
        "Stable Audio 3 Medium",
        (
            *_stable_audio_3(1536),
            mark(rf"{_AUDIO}self_attn_to_qkv$", 1536, rows=(7680,)),
            mark(rf"{_AUDIO}cross_attn_to_(q|kv)$", 1536, rows=(3072, 4608)),
            mark(rf"{_AUDIO}(self|cross)_attn_to_out$", 1536),
        ),
        transformer="StableAudio3DiTModel",
    ),
    Base(
        "stable-audio-3-small",
        "Stable Audio 3 Small",
        (*_stable_audio_3(1024), mark(rf"{_AUDIO}(self|cross)_attn_to_(q|kv|qkv|out)$", 1024)),
        transformer="StableAudio3DiTModel",
    ),
    Base("helios", "Helios", (mark("^patch_(short|mid|long)$"),), variant_of=("wan",)),
    Base(
        "anyflow",
        "AnyFlow",
        (mark("^(far_patch_embedding$|condition_embedder_delta_embedder_)"),),
        variant_of=("wan", "wan-1.3b"),
    ),
    Base(
        "skyreels",
        "SkyReels V2",
        (mark("^fps_(embedding|projection)"), *_wan_picture(1536, 5120)),
        transformer="SkyReelsV2Transformer3DModel",
        like="wan-i2v",
        variant_of=("wan", "wan-1.3b"),
    ),
    Base(
        "glm-image",
        "GLM-Image",
        (mark("^(glyph|prior|image)_projector_", 64, 1472, 2560, rows=(2560,)),),
        variant_of=("cogview3",),
    ),
    Base(
        "ovis-image",
        "Ovis-Image",
        (
            mark(rf"^{JOINT}\d+_(ff|ff_context)_net_0_proj$", 3072, rows=(24576,)),
            mark(r"^single_transformer_blocks_\d+_proj_mlp$", 3072, rows=(24576,)),
            mark(r"^double_blocks_\d+_(img|txt)_mlp_(gate|up|down)_proj$", 3072, 12288),
        ),
        transformer="OvisImageTransformer2DModel",
        variant_of=("flux",),
    ),
    Base(
        "longcat-image",
        "LongCat-Image",
        (mark("^context_embedder$", 3584, rows=(3072,)),),
        transformer="LongCatImageTransformer2DModel",
        variant_of=("flux",),
    ),
    Base(
        "bria-fibo",
        "Bria Fibo",
        (mark(r"^caption_projection_\d+_linear$", 2048, rows=(1536,)),),
        variant_of=("flux",),
    ),
    Base("bria", "Bria 3", (), transformer="BriaTransformer2DModel", variant_of=("flux",)),
    Base(
        "flux3",
        "FLUX.3",
        (
            mark(r"(^|_)mode_blocks_|^(early|single)_stream_modulations_"),
            mark(r"^single_blocks_\d+_([qkv]_proj|attn_out|mlp_in|mlp_out)$", 3072, 9216),
            mark(r"^single_transformer_blocks_\d+_ff_linear_(in|out)$", 3072, 9216, rows=(3072, 18432)),
            mark(r"^single_transformer_blocks_(1?\d|2[0-7])_attn_to_([qkv]|out_0)$", 3072),
        ),
        transformer="Flux3Transformer2DModel",
        singles=28,
    ),
    Base(
        "joyimage",
        "JoyImage",
        (
            mark(r"^double_blocks_\d+_attn_(img|txt)_attn_(qkv|proj)$", 3072),
            mark(r"^double_blocks_\d+_(img|txt)_mlp_net_", 3072, 12288),
        ),
        variant_of=("flux", "hunyuan-video"),
    ),
)
"""Sources of the sizes: the configurations of the published checkpoints, and diffusers' scripts that convert them."""
