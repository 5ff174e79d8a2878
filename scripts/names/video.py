"""The checkpoints of video, audio and music models."""

from __future__ import annotations

from scripts.names.checkpoint import Checkpoint

from lorry.dialects.comfyui import live_name

_TOKEN_REFINER = """
    img_in.proj txt_in.t_embedder.mlp.0 txt_in.t_embedder.mlp.2 txt_in.c_embedder.linear_1 txt_in.c_embedder.linear_2
    txt_in.input_embedder
""" + " ".join(
    f"txt_in.individual_token_refiner.blocks.*.{layer}"
    for layer in (
        "norm1",
        "norm2",
        "self_attn_qkv",
        "self_attn_proj",
        "mlp.fc1",
        "mlp.fc2",
        "adaLN_modulation.1",
    )
)
_HUNYUAN = f"""
    {_TOKEN_REFINER} time_in.mlp.0 time_in.mlp.2 vector_in.in_layer vector_in.out_layer
    guidance_in.mlp.0 guidance_in.mlp.2 final_layer.linear final_layer.adaLN_modulation.1
    single_blocks.*.linear1 single_blocks.*.linear2 single_blocks.*.q_norm single_blocks.*.k_norm
    single_blocks.*.modulation.linear
""" + " ".join(
    f"double_blocks.*.{stream}{layer}"
    for stream in ("img", "txt")
    for layer in (
        *("_mod.linear", "_attn_qkv", "_attn_q_norm", "_attn_k_norm", "_attn_proj", "_mlp.fc1", "_mlp.fc2"),
    )
)


def also_in_comfyui(pattern: str) -> str:
    """Return what ComfyUI calls the modules of a pattern, or what lorry makes of OMI's name for Flux's first layer."""
    if pattern == "img_in.proj":
        return "img_in"
    return (
        live_name(pattern.replace("*", "0")).replace(".0.", ".*.", 1)
        if "*" in pattern
        else live_name(pattern)
    )


def _qkv(block: str, name: str = "to_{}") -> str:
    return " + ".join(f"{block}.attn.{name.format(part)}" for part in "qkv")


_REFINER = "context_embedder.token_refiner.refiner_blocks.*"
_OMI = f"""
    double_blocks.*.img_mlp.fc0 -> transformer_blocks.*.ff.net.0.proj
    double_blocks.*.txt_mlp.fc0 -> transformer_blocks.*.ff_context.net.0.proj
    txt_in.individual_token_refiner.blocks.*.mlp.fc0 -> {_REFINER}.ff.net.0.proj
    txt_in.t_embedder.linear_1 -> context_embedder.time_text_embed.timestep_embedder.linear_1
    txt_in.t_embedder.linear_2 -> context_embedder.time_text_embed.timestep_embedder.linear_2
"""
"""What OneTrainer calls otherwise than the checkpoint does, in the Open Model Initiative's names."""
_HUNYUAN_TYPED = f"""
    img_in.proj -> x_embedder.proj
    byt5_in.layernorm -> context_embedder_2.norm
    byt5_in.fc1 -> context_embedder_2.linear_1
    byt5_in.fc2 -> context_embedder_2.linear_2
    byt5_in.fc3 -> context_embedder_2.linear_3
    txt_in.input_embedder -> context_embedder.proj_in
    txt_in.t_embedder.mlp.0 -> context_embedder.time_text_embed.timestep_embedder.linear_1
    txt_in.t_embedder.mlp.2 -> context_embedder.time_text_embed.timestep_embedder.linear_2
    txt_in.c_embedder.linear_1 -> context_embedder.time_text_embed.text_embedder.linear_1
    txt_in.c_embedder.linear_2 -> context_embedder.time_text_embed.text_embedder.linear_2
    txt_in.individual_token_refiner.blocks.*.norm1 -> {_REFINER}.norm1
    txt_in.individual_token_refiner.blocks.*.norm2 -> {_REFINER}.norm2
    txt_in.individual_token_refiner.blocks.*.self_attn_qkv -> {_qkv(_REFINER)}
    txt_in.individual_token_refiner.blocks.*.self_attn_proj -> {_REFINER}.attn.to_out.0
    txt_in.individual_token_refiner.blocks.*.mlp.fc1 -> {_REFINER}.ff.net.0.proj
    txt_in.individual_token_refiner.blocks.*.mlp.fc2 -> {_REFINER}.ff.net.2
    txt_in.individual_token_refiner.blocks.*.adaLN_modulation.1 -> {_REFINER}.norm_out.linear
    double_blocks.*.img_mod.linear -> transformer_blocks.*.norm1.linear
    double_blocks.*.txt_mod.linear -> transformer_blocks.*.norm1_context.linear
    double_blocks.*.img_attn_qkv -> {_qkv("transformer_blocks.*")}
    double_blocks.*.img_attn_q -> transformer_blocks.*.attn.to_q
    double_blocks.*.img_attn_k -> transformer_blocks.*.attn.to_k
    double_blocks.*.img_attn_v -> transformer_blocks.*.attn.to_v
    double_blocks.*.img_attn_q_norm -> transformer_blocks.*.attn.norm_q
    double_blocks.*.img_attn_k_norm -> transformer_blocks.*.attn.norm_k
    double_blocks.*.img_attn_proj -> transformer_blocks.*.attn.to_out.0
    double_blocks.*.img_mlp.fc1 -> transformer_blocks.*.ff.net.0.proj
    double_blocks.*.img_mlp.fc2 -> transformer_blocks.*.ff.net.2
    double_blocks.*.txt_attn_qkv -> {_qkv("transformer_blocks.*", "add_{}_proj")}
    double_blocks.*.txt_attn_q -> transformer_blocks.*.attn.add_q_proj
    double_blocks.*.txt_attn_k -> transformer_blocks.*.attn.add_k_proj
    double_blocks.*.txt_attn_v -> transformer_blocks.*.attn.add_v_proj
    double_blocks.*.txt_attn_q_norm -> transformer_blocks.*.attn.norm_added_q
    double_blocks.*.txt_attn_k_norm -> transformer_blocks.*.attn.norm_added_k
    double_blocks.*.txt_attn_proj -> transformer_blocks.*.attn.to_add_out
    double_blocks.*.txt_mlp.fc1 -> transformer_blocks.*.ff_context.net.0.proj
    double_blocks.*.txt_mlp.fc2 -> transformer_blocks.*.ff_context.net.2
    final_layer.linear -> proj_out
    final_layer.adaLN_modulation.1 -> norm_out.linear[1/2] + norm_out.linear[0/2]
"""
_HUNYUAN_SOURCE = "huggingface/diffusers, scripts/convert_hunyuan_{image,video1_5}_to_diffusers.py"
_SINGLE = "single_transformer_blocks.*"

_ACE_NORMS = "\n".join(
    f"layers.*.{attention}.{original}_norm -> layers.*.{attention}.norm_{original}"
    for attention in ("self_attn", "cross_attn")
    for original in "qk"
)
_ACE_SAME = "\n".join(
    f"decoder.{name} -> {name}"
    for name in (
        *("condition_embedder", "norm_out", "scale_shift_table", "layers.*.scale_shift_table"),
        *(
            f"{embed}.{layer}"
            for embed in ("time_embed", "time_embed_r")
            for layer in ("linear_1", "linear_2", "time_proj")
        ),
        *(f"layers.*.{norm}_norm" for norm in ("self_attn", "cross_attn", "mlp")),
        *(f"layers.*.mlp.{layer}_proj" for layer in ("gate", "up", "down")),
    )
)
_LTX2_EMBEDDERS = " ".join(
    f"{name}.{layer}"
    for name in (
        *("adaln_single", "audio_adaln_single", "av_ca_video_scale_shift_adaln_single"),
        *(
            "av_ca_audio_scale_shift_adaln_single",
            "av_ca_a2v_gate_adaln_single",
            "av_ca_v2a_gate_adaln_single",
        ),
    )
    for layer in ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
)
_LTX2_NORMS = " ".join(
    f"transformer_blocks.*.{attention}.{norm}"
    for attention in (
        "attn1",
        "attn2",
        "audio_attn1",
        "audio_attn2",
        "audio_to_video_attn",
        "video_to_audio_attn",
    )
    for norm in ("q_norm", "k_norm")
)
_LTX2_PROMPT = "\n".join(
    f"{side}prompt_adaln_single.{layer} -> {side}prompt_adaln.{layer}"
    for side in ("", "audio_")
    for layer in ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
)
"""Those of LTX-2.3."""

CHECKPOINTS = (
    Checkpoint(
        model="HunyuanVideoTransformer3DModel",
        convert="convert_hunyuan_video_transformer_to_diffusers",
        config={"num_layers": 2, "num_single_layers": 2},
        names=_HUNYUAN,
        rows={"single_blocks.*.linear1": 3 * 3072 + 12288},
        also=also_in_comfyui,
        spelt=_OMI,
    ),
    Checkpoint(
        model="HunyuanVideoFramepackTransformer3DModel",
        convert="convert_hunyuan_video_transformer_to_diffusers",
        config={
            "num_layers": 2,
            "num_single_layers": 2,
            "has_image_proj": True,
            "has_clean_x_embedder": True,
        },
        names=_HUNYUAN,
        rows={"single_blocks.*.linear1": 3 * 3072 + 12288},
        also=also_in_comfyui,
        same="clean_x_embedder|image_projection",
    ),
    Checkpoint(
        model="HunyuanVideo15Transformer3DModel",
        config={"num_layers": 2, "use_meanflow": True},
        typed=f"""
            {_HUNYUAN_TYPED}
            time_in.mlp.0 -> time_embed.timestep_embedder.linear_1
            time_in.mlp.2 -> time_embed.timestep_embedder.linear_2
            time_r_in.mlp.0 -> time_embed.timestep_embedder_r.linear_1
            time_r_in.mlp.2 -> time_embed.timestep_embedder_r.linear_2
            vision_in.proj.0 -> image_embedder.norm_in
            vision_in.proj.1 -> image_embedder.linear_1
            vision_in.proj.3 -> image_embedder.linear_2
            vision_in.proj.4 -> image_embedder.norm_out
        """,
        also=also_in_comfyui,
        source=_HUNYUAN_SOURCE,
    ),
    Checkpoint(
        model="HunyuanImageTransformer2DModel",
        config={"num_layers": 2, "num_single_layers": 2, "text_embed_2_dim": 1472, "guidance_embeds": True}
        | {"use_meanflow": True},
        typed=f"""
            {_HUNYUAN_TYPED}
            time_in.mlp.0 -> time_guidance_embed.timestep_embedder.linear_1
            time_in.mlp.2 -> time_guidance_embed.timestep_embedder.linear_2
            time_r_in.mlp.0 -> time_guidance_embed.timestep_embedder_r.linear_1
            time_r_in.mlp.2 -> time_guidance_embed.timestep_embedder_r.linear_2
            guidance_in.mlp.0 -> time_guidance_embed.guidance_embedder.linear_1
            guidance_in.mlp.2 -> time_guidance_embed.guidance_embedder.linear_2
            single_blocks.*.modulation.linear -> {_SINGLE}.norm.linear
            single_blocks.*.q_norm -> {_SINGLE}.attn.norm_q
            single_blocks.*.k_norm -> {_SINGLE}.attn.norm_k
            single_blocks.*.linear1 -> {_qkv(_SINGLE)} + {_SINGLE}.proj_mlp
            single_blocks.*.linear1_q -> {_SINGLE}.attn.to_q
            single_blocks.*.linear1_k -> {_SINGLE}.attn.to_k
            single_blocks.*.linear1_v -> {_SINGLE}.attn.to_v
            single_blocks.*.linear1_mlp -> {_SINGLE}.proj_mlp
            single_blocks.*.linear2 -> {_SINGLE}.proj_out
            single_blocks.*.linear2.fc -> {_SINGLE}.proj_out
        """,
        also=also_in_comfyui,
        source=_HUNYUAN_SOURCE,
    ),
    Checkpoint(
        model="LTXVideoTransformer3DModel",
        convert="convert_ltx_transformer_checkpoint_to_diffusers",
        config={"num_layers": 2},
        names="""
            patchify_proj adaln_single.emb.timestep_embedder.linear_1 adaln_single.emb.timestep_embedder.linear_2
            adaln_single.linear transformer_blocks.*.attn1.q_norm transformer_blocks.*.attn1.k_norm
            transformer_blocks.*.attn2.q_norm transformer_blocks.*.attn2.k_norm
        """,
        same=r"caption_projection|proj_out|transformer_blocks\.\d+\.(attn\d\.to_|ff\.)",
        lacks="audio_patchify_proj",
    ),
    *(
        Checkpoint(
            model=model,
            convert="convert_ltx2_transformer_to_diffusers",
            config={"num_layers": 2, "gated_attn": True, "audio_gated_attn": True}
            | {"cross_attn_mod": True, "audio_cross_attn_mod": True},
            names=f"patchify_proj audio_patchify_proj {_LTX2_EMBEDDERS} {_LTX2_NORMS}",
            bare="""
                transformer_blocks.*.scale_shift_table_a2v_ca_audio transformer_blocks.*.scale_shift_table_a2v_ca_video
            """,
            typed=_LTX2_PROMPT,
            same=r"(audio_)?(caption_projection|proj_out)|transformer_blocks\.\d+\.(\w+\.to_|(audio_)?ff\.)",
            like=like,
        )
        for model, like in (
            ("LTX2VideoTransformer3DModel", ""),
            ("SanaWMLTX2RefinerTransformer3DModel", "LTX2VideoTransformer3DModel"),
        )
    ),
    Checkpoint(
        model="MochiTransformer3DModel",
        convert="convert_mochi_transformer_checkpoint_to_diffusers",
        blocks=48,
        names="""
            x_embedder.proj t_embedder.mlp.0 t_embedder.mlp.2 t5_y_embedder.to_kv t5_y_embedder.to_q
            t5_y_embedder.to_out t5_yproj final_layer.mod final_layer.linear blocks.*.mod_x blocks.*.mod_y
            blocks.*.attn.qkv_x blocks.*.attn.q_norm_x blocks.*.attn.k_norm_x blocks.*.attn.proj_x
            blocks.*.attn.qkv_y blocks.*.attn.q_norm_y blocks.*.attn.k_norm_y blocks.*.attn.proj_y
            blocks.*.mlp_x.w1 blocks.*.mlp_x.w2 blocks.*.mlp_y.w1 blocks.*.mlp_y.w2
        """,
        extra="pos_frequencies",
    ),
    Checkpoint(
        model="MiniMaxH3Transformer3DModel",
        convert="convert_minimax_h3_transformer_checkpoint_to_diffusers",
        config={"num_layers": 2},
        names=f"""
            video_patch_proj audio_patch_proj condition_proj time_embedder.proj_in time_embedder.proj_out
            final_layer.norm final_layer.adaln_proj.linear final_layer.video_out final_layer.audio_out
            {
            " ".join(
                f"{block}.*.{layer}"
                for block in ("blocks", "token_refiner.blocks")
                for layer in (
                    "attn.qkv_proj",
                    "attn.q_norm",
                    "attn.k_norm",
                    "attn.out_proj",
                    "mlp.fc1",
                    "mlp.fc2",
                    "norm1",
                    "norm2",
                )
            )
        }
            blocks.*.adaln_proj.linear
        """,
        same=r"token_refiner\.final_norm",
    ),
    Checkpoint(
        model="AceStepTransformer1DModel",
        convert="_convert_non_diffusers_ace_step_lora_to_diffusers",
        lora=True,
        config={"num_hidden_layers": 2},
        names=" ".join(
            f"layers.*.{attention}.{layer}"
            for attention in ("self_attn", "cross_attn")
            for layer in ("q_proj", "k_proj", "v_proj", "o_proj")
        ),
        typed=f"""
            proj_in.1 -> proj_in_conv
            {_ACE_NORMS}
        """,
        spelt=_ACE_SAME,
        also=lambda name: f"decoder.{name}",
        writes_also=True,
        same=r"(?!.*_attn\.to)",
        source="diffusers.loaders.lora_conversion_utils._convert_non_diffusers_ace_step_lora_to_diffusers; "
        "`proj_in.1`, norms and `decoder.` from huggingface/diffusers, scripts/convert_ace_step_to_diffusers.py",
    ),
)
