"""The checkpoints of Black Forest Labs' models, and of those that were made from them."""

from __future__ import annotations

from scripts.names.checkpoint import Checkpoint

DOUBLE = """
    double_blocks.*.img_attn.qkv double_blocks.*.txt_attn.qkv
    double_blocks.*.img_attn.proj double_blocks.*.txt_attn.proj
    double_blocks.*.img_attn.norm.query_norm.scale double_blocks.*.img_attn.norm.key_norm.scale
    double_blocks.*.txt_attn.norm.query_norm.scale double_blocks.*.txt_attn.norm.key_norm.scale
    double_blocks.*.img_mlp.0 double_blocks.*.img_mlp.2 double_blocks.*.txt_mlp.0 double_blocks.*.txt_mlp.2
"""
SINGLE = """
    single_blocks.*.linear1 single_blocks.*.linear2
    single_blocks.*.norm.query_norm.scale single_blocks.*.norm.key_norm.scale
"""
FLUX3_BLOCK = " ".join(
    f"{block}.*.{layer}"
    for block in (
        "content_mode_blocks.image",
        "content_mode_blocks.image_cond",
        "txt_mode_blocks",
        "single_blocks",
    )
    for layer in (
        *("q_proj", "k_proj", "v_proj", "attn_out", "mlp_in", "mlp_out"),
        *("norm.query_norm.scale", "norm.key_norm.scale"),
    )
)

_JOINED, _SINGLE = "transformer_blocks.*.attn", "single_transformer_blocks.*"
_BLOCKS_TYPED = f"""
    img_in -> x_embedder
    final_layer.linear -> proj_out
    final_layer.adaLN_modulation.1 -> norm_out.linear[1/2] + norm_out.linear[0/2]
    double_blocks.*.img_mod.lin -> transformer_blocks.*.norm1.linear
    double_blocks.*.txt_mod.lin -> transformer_blocks.*.norm1_context.linear
    double_blocks.*.img_attn.qkv -> {_JOINED}.to_q + {_JOINED}.to_k + {_JOINED}.to_v
    double_blocks.*.txt_attn.qkv -> {_JOINED}.add_q_proj + {_JOINED}.add_k_proj + {_JOINED}.add_v_proj
    double_blocks.*.img_attn.proj -> {_JOINED}.to_out.0
    double_blocks.*.txt_attn.proj -> {_JOINED}.to_add_out
    double_blocks.*.img_attn.norm.query_norm -> {_JOINED}.norm_q
    double_blocks.*.img_attn.norm.key_norm -> {_JOINED}.norm_k
    double_blocks.*.txt_attn.norm.query_norm -> {_JOINED}.norm_added_q
    double_blocks.*.txt_attn.norm.key_norm -> {_JOINED}.norm_added_k
    single_blocks.*.modulation.lin -> {_SINGLE}.norm.linear
    single_blocks.*.linear1 -> {_SINGLE}.attn.to_q + {_SINGLE}.attn.to_k + {_SINGLE}.attn.to_v + {_SINGLE}.proj_mlp
    single_blocks.*.linear2 -> {_SINGLE}.proj_out
    single_blocks.*.norm.query_norm -> {_SINGLE}.attn.norm_q
    single_blocks.*.norm.key_norm -> {_SINGLE}.attn.norm_k
"""
"""What models with the blocks of FLUX.1 have in common."""


_DIFFSYNTH = f"""
    blocks.*.attn.a_to_qkv -> {_JOINED}.to_q + {_JOINED}.to_k + {_JOINED}.to_v
    blocks.*.attn.b_to_qkv -> {_JOINED}.add_q_proj + {_JOINED}.add_k_proj + {_JOINED}.add_v_proj
    blocks.*.attn.a_to_out -> {_JOINED}.to_out.0
    blocks.*.attn.b_to_out -> {_JOINED}.to_add_out
    blocks.*.ff_a.0 -> transformer_blocks.*.ff.net.0.proj
    blocks.*.ff_a.2 -> transformer_blocks.*.ff.net.2
    blocks.*.ff_b.0 -> transformer_blocks.*.ff_context.net.0.proj
    blocks.*.ff_b.2 -> transformer_blocks.*.ff_context.net.2
    blocks.*.norm1_a.linear -> transformer_blocks.*.norm1.linear
    blocks.*.norm1_b.linear -> transformer_blocks.*.norm1_context.linear
    single_blocks.*.to_qkv_mlp -> {_SINGLE}.attn.to_q + {_SINGLE}.attn.to_k + {_SINGLE}.attn.to_v + {_SINGLE}.proj_mlp
    single_blocks.*.proj_out -> {_SINGLE}.proj_out
    single_blocks.*.norm.linear -> {_SINGLE}.norm.linear
"""
"""Names of DiffSynth-Studio's own FLUX.1, of the layers that it trains (`utils/state_dict_converters/flux_dit.py`)."""


def _gated(original: str, live: str) -> str:
    """A gated feed-forward whose gate is a layer of its own in the original, and half of one in diffusers."""
    return f"""
        double_blocks.*.{original}.up_proj -> transformer_blocks.*.{live}.net.0.proj[0/2]
        double_blocks.*.{original}.gate_proj -> transformer_blocks.*.{live}.net.0.proj[1/2]
        double_blocks.*.{original}.down_proj -> transformer_blocks.*.{live}.net.2
    """


CHECKPOINTS = (
    Checkpoint(
        model="FluxTransformer2DModel",
        convert="convert_flux_transformer_checkpoint_to_diffusers",
        config={"num_layers": 2, "num_single_layers": 2, "guidance_embeds": True},
        names=f"""
            img_in txt_in time_in.in_layer time_in.out_layer vector_in.in_layer vector_in.out_layer
            guidance_in.in_layer guidance_in.out_layer final_layer.linear final_layer.adaLN_modulation.1
            {DOUBLE} {SINGLE}
            double_blocks.*.img_mod.lin double_blocks.*.txt_mod.lin single_blocks.*.modulation.lin
        """,
        rows={"single_blocks.*.linear1": 3 * 3072 + 12288},
        spelt=_DIFFSYNTH,
    ),
    Checkpoint(
        model="ChromaTransformer2DModel",
        convert="convert_chroma_transformer_checkpoint_to_diffusers",
        config={"num_layers": 2, "num_single_layers": 2, "approximator_layers": 2},
        names=f"""
            img_in txt_in final_layer.linear {DOUBLE} {SINGLE}
            distilled_guidance_layer.in_proj distilled_guidance_layer.out_proj
            distilled_guidance_layer.layers.*.in_layer distilled_guidance_layer.layers.*.out_layer
            distilled_guidance_layer.norms.*.scale
        """,
        rows={"single_blocks.*.linear1": 3 * 3072 + 12288},
    ),
    Checkpoint(
        model="Flux2Transformer2DModel",
        convert="convert_flux2_transformer_checkpoint_to_diffusers",
        config={"num_layers": 2, "num_single_layers": 2},
        names=f"""
            img_in txt_in time_in.in_layer time_in.out_layer guidance_in.in_layer guidance_in.out_layer
            double_stream_modulation_img.lin double_stream_modulation_txt.lin single_stream_modulation.lin
            final_layer.linear final_layer.adaLN_modulation.1 {DOUBLE} {SINGLE}
        """,
    ),
    Checkpoint(
        model="Flux3Transformer2DModel",
        convert="convert_flux3_transformer_checkpoint_to_diffusers",
        config={"num_layers": 2, "num_single_layers": 2, "flow_map": True},
        names=f"""
            emb_in.image emb_in.image_cond txt_in time_in.in_layer time_in.out_layer
            ref_time_in.in_layer ref_time_in.out_layer final_layer.image.linear final_layer.image.adaLN_modulation.1
            early_stream_modulations.image.lin early_stream_modulations.image_cond.lin early_stream_modulations.txt.lin
            single_stream_modulations.image.lin single_stream_modulations.image_cond.lin
            single_stream_modulations.txt.lin {FLUX3_BLOCK}
        """,
    ),
    Checkpoint(
        model="OvisImageTransformer2DModel",
        config={"num_layers": 2, "num_single_layers": 2},
        typed=f"""
            semantic_txt_norm -> context_embedder_norm
            semantic_txt_in -> context_embedder
            time_in.in_layer -> timestep_embedder.linear_1
            time_in.out_layer -> timestep_embedder.linear_2
            {_BLOCKS_TYPED}
            {_gated("img_mlp", "ff")}
            {_gated("txt_mlp", "ff_context")}
        """,
        spelt="""
            txt_norm -> context_embedder_norm
            txt_in -> context_embedder
        """,
        source="huggingface/diffusers, scripts/convert_ovis_image_to_diffusers.py",
    ),
    Checkpoint(
        model="LongCatImageTransformer2DModel",
        config={"num_layers": 2, "num_single_layers": 2},
        typed=f"""
            txt_in -> context_embedder
            time_in.in_layer -> time_embed.timestep_embedder.linear_1
            time_in.out_layer -> time_embed.timestep_embedder.linear_2
            {_BLOCKS_TYPED}
            double_blocks.*.img_mlp.0 -> transformer_blocks.*.ff.net.0.proj
            double_blocks.*.img_mlp.2 -> transformer_blocks.*.ff.net.2
            double_blocks.*.txt_mlp.0 -> transformer_blocks.*.ff_context.net.0.proj
            double_blocks.*.txt_mlp.2 -> transformer_blocks.*.ff_context.net.2
        """,
        lacks="vector_in.in_layer",
        source="Comfy-Org/ComfyUI, comfy/model_detection.py",
    ),
)
