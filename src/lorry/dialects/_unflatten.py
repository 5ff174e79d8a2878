"""Give flattened module paths their dots back, where no live model is at hand to ask."""

from __future__ import annotations

from functools import cache

from lorry.errors import FormatError

_UNETS = (
    "add_embedding add_time_proj conv_act conv_in conv_norm_out conv_out conv_shortcut down_blocks linear_1 linear_2 "
    "mid_block proj_in proj_out time_emb_proj time_embedding time_proj to_k to_out to_q to_v transformer_blocks "
    "up_blocks"
)
_TEXT_ENCODERS = (
    "activation_fn embed_tokens final_layer_norm k_proj layer_norm layer_norm1 layer_norm2 out_proj "
    "position_embedding q_proj relative_attention_bias self_attn text_model text_projection token_embedding v_proj "
    "wi_0 wi_1"
)
_DECODERS = "act_fn down_proj gate_proj input_layernorm o_proj post_attention_layernorm rotary_emb up_proj"
_TRANSFORMERS = (
    "act_1 act_mlp add_k_proj add_q_proj add_v_proj context_embedder ff_context guidance_embedder norm1_context "
    "norm2_context norm_added_k norm_added_q norm_k norm_out norm_q pos_embed proj_mlp single_transformer_blocks "
    "text_embedder time_text_embed timestep_embedder to_add_out x_embedder"
)
_CONNECTORS = (
    "audio_connector audio_text_proj_in learnable_registers text_proj_in to_gate_logits video_connector "
    "video_text_proj_in"
)
SEGMENTS = frozenset(f"{_UNETS} {_TEXT_ENCODERS} {_DECODERS} {_TRANSFORMERS} {_CONNECTORS}".split())
"""The segments of module paths that hold an underscore themselves. A test holds them against the models."""
_LONGEST = max(segment.count("_") for segment in SEGMENTS) + 1


@cache
def unflatten(path: str) -> str:
    """Return a flattened module path with its dots: `mid_block_resnets_0_conv1` -> `mid_block.resnets.0.conv1`.

    Known are the names of diffusers' UNets, of its Stable Diffusion 3 and Flux transformers, of LTX-2's connectors,
    and of CLIP, T5 and Llama. A live model's own paths are the better judge where there is one.

    Raises:
        FormatError: `path` is empty.
    """
    if not path:
        raise FormatError("An empty name is no module's.")
    words = path.split("_")
    segments = []
    while words:
        length = next(
            n for n in range(min(_LONGEST, len(words)), 0, -1) if n == 1 or "_".join(words[:n]) in SEGMENTS
        )
        segments.append("_".join(words[:length]))
        words = words[length:]
    return ".".join(segments)
