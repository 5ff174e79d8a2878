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
)
