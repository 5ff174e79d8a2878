"""The checkpoints whose conversion is in no installed package: what is typed is checked against the live model."""

from __future__ import annotations

from scripts.names.checkpoint import Checkpoint

_SCRIPTS = "huggingface/diffusers, scripts/convert_{}_to_diffusers.py"


def rows(pattern: str, *names: tuple[str, str]) -> str:
    """Return a row `original -> live` for each pair of names, which stand in the two halves of the pattern."""
    original, live = pattern.split(" -> ")
    return "\n".join(f"{original.format(one)} -> {live.format(other)}" for one, other in names)


def joined(path: str, parts: str) -> str:
    """Return the paths of several parts, as the pieces of one row."""
    return " + ".join(path.format(part) for part in parts)


def without_root(name: str) -> str:
    """Return a name of SAT's or of stable-audio-tools' without its root, which files have as their container."""
    return name.removeprefix("transformer.")


_SAT_LAYER = f"""
    transformer.layers.*.attention.query_key_value -> {joined("transformer_blocks.*.attn1.to_{}", "qkv")}
    transformer.layers.*.attention.dense -> transformer_blocks.*.attn1.to_out.0
    transformer.layers.*.mlp.dense_h_to_4h -> transformer_blocks.*.ff.net.0.proj
    transformer.layers.*.mlp.dense_4h_to_h -> transformer_blocks.*.ff.net.2
    mixins.patch_embed.proj -> patch_embed.proj
    mixins.patch_embed.text_proj -> patch_embed.text_proj
    mixins.final_layer.linear -> proj_out
"""
_STABLE_AUDIO = "transformer.layers.*.{} -> transformer_blocks.*.{}"
_PIXART = "blocks.*.{} -> transformer_blocks.*.{}"
_EMBEDDER = "{} -> adaln_single.emb.{}"
_HUNYUAN = "blocks.*.{} -> blocks.*.{}"
_POOLER = "pooler.{} -> time_extra_emb.pooler.{}"

_COGVIEW = f"""
    {_SAT_LAYER}
    mixins.adaln.adaln_modules.*.1 -> transformer_blocks.*.norm1.linear
    mixins.final_layer.adaln.1 -> norm_out.linear[1/2] + norm_out.linear[0/2]
    time_embed.0 -> time_condition_embed.timestep_embedder.linear_1
    time_embed.2 -> time_condition_embed.timestep_embedder.linear_2
    label_emb.0.0 -> time_condition_embed.condition_embedder.linear_1
    label_emb.0.2 -> time_condition_embed.condition_embedder.linear_2
"""
_SANA = "blocks.*.{} -> transformer_blocks.*.{}"

CHECKPOINTS = (
    Checkpoint(
        model="CogVideoXTransformer3DModel",
        config={"num_layers": 2, "ofs_embed_dim": 512},
        typed=f"""
            {_SAT_LAYER}
            transformer.layers.*.input_layernorm -> transformer_blocks.*.norm1.norm
            transformer.layers.*.post_attention_layernorm -> transformer_blocks.*.norm2.norm
            transformer.final_layernorm -> norm_final
            mixins.adaln_layer.query_layernorm_list.* -> transformer_blocks.*.attn1.norm_q
            mixins.adaln_layer.key_layernorm_list.* -> transformer_blocks.*.attn1.norm_k
            mixins.adaln_layer.adaLN_modulations.*.1 -> {
            " + ".join(f"transformer_blocks.*.norm{n}.linear[{half}/2]" for half in (0, 1) for n in (1, 2))
        }
            mixins.final_layer.norm_final -> norm_out.norm
            mixins.final_layer.adaLN_modulation.1 -> norm_out.linear
            time_embed.0 -> time_embedding.linear_1
            time_embed.2 -> time_embedding.linear_2
            ofs_embed.0 -> ofs_embedding.linear_1
            ofs_embed.2 -> ofs_embedding.linear_2
        """,
        also=without_root,
        source=_SCRIPTS.format("cogvideox"),
    ),
    Checkpoint(
        model="CogView4Transformer2DModel",
        config={"num_layers": 2},
        typed=_COGVIEW,
        also=without_root,
        source=_SCRIPTS.format("cogview4"),
    ),
    Checkpoint(
        model="CogView3PlusTransformer2DModel",
        config={"num_layers": 2},
        typed=_COGVIEW,
        also=without_root,
        source=_SCRIPTS.format("cogview3"),
    ),
    Checkpoint(
        model="SanaVideoTransformer3DModel",
        config={"num_layers": 2},
        typed=f"""
            x_embedder.proj -> patch_embedding
            y_embedder.y_proj.fc1 -> caption_projection.linear_1
            y_embedder.y_proj.fc2 -> caption_projection.linear_2
            attention_y_norm -> caption_norm
            t_embedder.mlp.0 -> time_embed.emb.timestep_embedder.linear_1
            t_embedder.mlp.2 -> time_embed.emb.timestep_embedder.linear_2
            t_block.1 -> time_embed.linear
            final_layer.linear -> proj_out
            final_layer.scale_shift_table -> scale_shift_table
            blocks.*.attn.qkv -> {joined("transformer_blocks.*.attn1.to_{}", "qkv")}
            blocks.*.cross_attn.kv_linear -> {joined("transformer_blocks.*.attn2.to_{}", "kv")}
            {
            rows(
                _SANA,
                ("scale_shift_table", "scale_shift_table"),
                ("attn.q_norm", "attn1.norm_q"),
                ("attn.k_norm", "attn1.norm_k"),
                ("attn.proj", "attn1.to_out.0"),
                ("cross_attn.q_linear", "attn2.to_q"),
                ("cross_attn.q_norm", "attn2.norm_q"),
                ("cross_attn.k_norm", "attn2.norm_k"),
                ("cross_attn.proj", "attn2.to_out.0"),
                ("mlp.inverted_conv.conv", "ff.conv_inverted"),
                ("mlp.depth_conv.conv", "ff.conv_depth"),
                ("mlp.point_conv.conv", "ff.conv_point"),
                ("mlp.t_conv", "ff.conv_temp"),
            )
        }
        """,
        lacks="raymap_embedder.proj",
        source=_SCRIPTS.format("sana_video"),
    ),
    Checkpoint(
        model="PixArtTransformer2DModel",
        config={"num_layers": 2, "caption_channels": 4096},
        typed=f"""
            x_embedder.proj -> pos_embed.proj
            y_embedder.y_proj.fc1 -> caption_projection.linear_1
            y_embedder.y_proj.fc2 -> caption_projection.linear_2
            t_block.1 -> adaln_single.linear
            final_layer.linear -> proj_out
            final_layer.scale_shift_table -> scale_shift_table
            blocks.*.attn.qkv -> {joined("transformer_blocks.*.attn1.to_{}", "qkv")}
            blocks.*.cross_attn.kv_linear -> {joined("transformer_blocks.*.attn2.to_{}", "kv")}
            {
            rows(
                _PIXART,
                ("attn.proj", "attn1.to_out.0"),
                ("cross_attn.q_linear", "attn2.to_q"),
                ("cross_attn.proj", "attn2.to_out.0"),
                ("mlp.fc1", "ff.net.0.proj"),
                ("mlp.fc2", "ff.net.2"),
                ("scale_shift_table", "scale_shift_table"),
            )
        }
            {
            rows(
                _EMBEDDER,
                ("t_embedder.mlp.0", "timestep_embedder.linear_1"),
                ("t_embedder.mlp.2", "timestep_embedder.linear_2"),
                ("csize_embedder.mlp.0", "resolution_embedder.linear_1"),
                ("csize_embedder.mlp.2", "resolution_embedder.linear_2"),
                ("ar_embedder.mlp.0", "aspect_ratio_embedder.linear_1"),
                ("ar_embedder.mlp.2", "aspect_ratio_embedder.linear_2"),
            )
        }
        """,
        source=_SCRIPTS.format("pixart_sigma"),
    ),
    Checkpoint(
        model="StableAudioDiTModel",
        config={"num_layers": 2},
        typed=f"""
            to_timestep_embed.0 -> timestep_proj.0
            to_timestep_embed.2 -> timestep_proj.2
            to_global_embed.0 -> global_proj.0
            to_global_embed.2 -> global_proj.2
            to_cond_embed.0 -> cross_attention_proj.0
            to_cond_embed.2 -> cross_attention_proj.2
            transformer.project_in -> proj_in
            transformer.project_out -> proj_out
            transformer.layers.*.self_attn.to_qkv -> {joined("transformer_blocks.*.attn1.to_{}", "qkv")}
            transformer.layers.*.cross_attn.to_kv -> {joined("transformer_blocks.*.attn2.to_{}", "kv")}
            {
            rows(
                _STABLE_AUDIO,
                ("pre_norm.gamma", "norm1"),
                ("self_attn.to_out", "attn1.to_out.0"),
                ("cross_attend_norm.gamma", "norm2"),
                ("cross_attn.to_q", "attn2.to_q"),
                ("cross_attn.to_out", "attn2.to_out.0"),
                ("ff_norm.gamma", "norm3"),
                ("ff.ff.0.proj", "ff.net.0.proj"),
                ("ff.ff.2", "ff.net.2"),
            )
        }
        """,
        same="preprocess_conv|postprocess_conv|time_proj",
        also=without_root,
        lacks="transformer.global_cond_embedder.0",
        source="huggingface/diffusers, scripts/convert_stable_audio.py",
    ),
    Checkpoint(
        model="StableAudio3DiTModel",
        config={"depth": 2},
        typed=f"""
            transformer.project_in -> proj_in
            transformer.project_out -> proj_out
            transformer.memory_tokens -> memory_tokens
            transformer.global_cond_embedder.0 -> global_cond_embedder.0
            transformer.global_cond_embedder.2 -> global_cond_embedder.2
            transformer.layers.*.self_attn.to_qkv -> {
            " + ".join(f"transformer_blocks.*.self_attn.to_qkv[{part}/5]" for part in (0, 2, 4, 1, 3))
        }
            {
            rows(
                _STABLE_AUDIO,
                *(
                    (name, name)
                    for name in (
                        *("to_scale_shift_gate", "to_local_embed.0", "to_local_embed.2"),
                        *("self_attn.to_out", "self_attn.q_norm.gamma", "self_attn.k_norm.gamma"),
                        *("cross_attn.to_q", "cross_attn.to_kv", "cross_attn.to_out"),
                        *("cross_attn.q_norm.gamma", "cross_attn.k_norm.gamma"),
                        *("pre_norm.gamma", "cross_attend_norm.gamma", "ff_norm.gamma"),
                    )
                ),
                ("ff.ff.0.proj", "ff.proj_in"),
                ("ff.ff.2", "ff.proj_out"),
            )
        }
        """,
        without={
            "use_differential_attention": "transformer.layers.*.self_attn.to_qkv -> "
            "transformer_blocks.*.self_attn.to_qkv"
        },
        same=r"preprocess_conv|postprocess_conv|to_(timestep|cond|global)_embed|prompt_padding_embedding",
        also=without_root,
        source="huggingface/diffusers, scripts/convert_stable_audio_3_to_diffusers.py",
    ),
    Checkpoint(
        model="HunyuanDiT2DModel",
        config={"num_layers": 4, "in_channels": 4, "hidden_size": 1408, "patch_size": 2, "mlp_ratio": 4.3637},
        blocks=4,
        typed=f"""
            x_embedder.proj -> pos_embed.proj
            final_layer.linear -> proj_out
            final_layer.adaLN_modulation.1 -> norm_out.linear[1/2] + norm_out.linear[0/2]
            mlp_t5.0 -> text_embedder.linear_1
            mlp_t5.2 -> text_embedder.linear_2
            t_embedder.mlp.0 -> time_extra_emb.timestep_embedder.linear_1
            t_embedder.mlp.2 -> time_extra_emb.timestep_embedder.linear_2
            extra_embedder.0 -> time_extra_emb.extra_embedder.linear_1
            extra_embedder.2 -> time_extra_emb.extra_embedder.linear_2
            {rows(_POOLER, *((name, name) for name in ("q_proj", "k_proj", "v_proj", "c_proj")))}
            pooler.positional_embedding -> time_extra_emb.pooler.positional_embedding
            blocks.*.attn1.Wqkv -> {joined("blocks.*.attn1.to_{}", "qkv")}
            blocks.*.attn2.kv_proj -> {joined("blocks.*.attn2.to_{}", "kv")}
            {
            rows(
                _HUNYUAN,
                ("norm1", "norm1.norm"),
                ("norm2", "norm3"),
                ("norm3", "norm2"),
                ("default_modulation.1", "norm1.linear"),
                ("attn1.q_norm", "attn1.norm_q"),
                ("attn1.k_norm", "attn1.norm_k"),
                ("attn1.out_proj", "attn1.to_out.0"),
                ("attn2.q_proj", "attn2.to_q"),
                ("attn2.q_norm", "attn2.norm_q"),
                ("attn2.k_norm", "attn2.norm_k"),
                ("attn2.out_proj", "attn2.to_out.0"),
                ("mlp.fc1", "ff.net.0.proj"),
                ("mlp.fc2", "ff.net.2"),
            )
        }
        """,
        same=r"blocks\.\d+\.skip_(linear|norm)$",
        source=_SCRIPTS.format("hunyuandit"),
    ),
)
