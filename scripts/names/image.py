"""The checkpoints of other image models."""

from __future__ import annotations

from scripts.names.checkpoint import Checkpoint

_NEXT_DIT = " ".join(
    f"{block}.*.{layer}"
    for block in ("noise_refiner", "context_refiner", "layers")
    for layer in ("attention.qkv", "attention.out", "attention.q_norm", "attention.k_norm")
)
_COSMOS_1_BLOCK = " ".join(
    f"blocks.block*.blocks.{part}.{layer}"
    for part, layers in enumerate(
        (*(("to_q.0", "to_q.1", "to_k.0", "to_k.1", "to_v.0", "to_out.0"),) * 2, ())
    )
    for layer in (
        *(f"block.attn.{name}" for name in layers),
        *(() if layers else ("block.layer1", "block.layer2")),
        *("adaLN_modulation.1", "adaLN_modulation.2"),
    )
)
_KREA_BLOCK = " ".join(
    f"{block}.*.{layer}"
    for block in ("blocks", "txtfusion.layerwise_blocks", "txtfusion.refiner_blocks")
    for layer in (
        *("attn.wq", "attn.wk", "attn.wv", "attn.wo", "attn.gate", "mlp.gate", "mlp.up", "mlp.down"),
        *("attn.qknorm.qnorm.scale", "attn.qknorm.knorm.scale", "prenorm.scale", "postnorm.scale"),
    )
)

CHECKPOINTS = (
    Checkpoint(
        model="SD3Transformer2DModel",
        convert="convert_sd3_transformer_checkpoint_to_diffusers",
        config={"num_layers": 3, "qk_norm": "rms_norm", "dual_attention_layers": (0, 1, 2)},
        blocks=3,
        names="""
            x_embedder.proj t_embedder.mlp.0 t_embedder.mlp.2 context_embedder y_embedder.mlp.0 y_embedder.mlp.2
            joint_blocks.*.x_block.attn.qkv joint_blocks.*.context_block.attn.qkv joint_blocks.*.x_block.attn2.qkv
            joint_blocks.*.x_block.attn.ln_q joint_blocks.*.x_block.attn.ln_k
            joint_blocks.*.context_block.attn.ln_q joint_blocks.*.context_block.attn.ln_k
            joint_blocks.*.x_block.attn2.ln_q joint_blocks.*.x_block.attn2.ln_k
            joint_blocks.*.x_block.attn.proj joint_blocks.*.context_block.attn.proj joint_blocks.*.x_block.attn2.proj
            joint_blocks.*.x_block.adaLN_modulation.1 joint_blocks.*.context_block.adaLN_modulation.1
            joint_blocks.*.x_block.mlp.fc1 joint_blocks.*.x_block.mlp.fc2
            joint_blocks.*.context_block.mlp.fc1 joint_blocks.*.context_block.mlp.fc2
            final_layer.linear final_layer.adaLN_modulation.1
        """,
        extra="pos_embed",
    ),
    Checkpoint(
        model="AuraFlowTransformer2DModel",
        convert="convert_auraflow_transformer_checkpoint_to_diffusers",
        config={"num_mmdit_layers": 2, "num_single_dit_layers": 2},
        names="""
            t_embedder.mlp.0 t_embedder.mlp.2 cond_seq_linear init_x_linear final_linear modF.1
            double_layers.*.modX.1 double_layers.*.modC.1
            double_layers.*.mlpX.c_fc1 double_layers.*.mlpX.c_fc2 double_layers.*.mlpX.c_proj
            double_layers.*.mlpC.c_fc1 double_layers.*.mlpC.c_fc2 double_layers.*.mlpC.c_proj
            double_layers.*.attn.w2q double_layers.*.attn.w2k double_layers.*.attn.w2v double_layers.*.attn.w2o
            double_layers.*.attn.w1q double_layers.*.attn.w1k double_layers.*.attn.w1v double_layers.*.attn.w1o
            single_layers.*.modCX.1 single_layers.*.mlp.c_fc1 single_layers.*.mlp.c_fc2 single_layers.*.mlp.c_proj
            single_layers.*.attn.w1q single_layers.*.attn.w1k single_layers.*.attn.w1v single_layers.*.attn.w1o
        """,
        bare="register_tokens positional_encoding",
    ),
    Checkpoint(
        model="SanaTransformer2DModel",
        convert="convert_sana_transformer_to_diffusers",
        config={"num_layers": 2, "qk_norm": "rms_norm_across_heads"},
        names="""
            x_embedder.proj t_embedder.mlp.0 t_embedder.mlp.2 t_block.1 attention_y_norm final_layer.linear
            y_embedder.y_proj.fc1 y_embedder.y_proj.fc2 blocks.*.attn.qkv blocks.*.attn.proj
            blocks.*.cross_attn.q_linear blocks.*.cross_attn.kv_linear blocks.*.cross_attn.proj
            blocks.*.mlp.inverted_conv.conv blocks.*.mlp.depth_conv.conv blocks.*.mlp.point_conv.conv
        """,
        bare="blocks.*.scale_shift_table final_layer.scale_shift_table",
        extra="pos_embed y_embedder.y_embedding",
        typed="""
            blocks.*.attn.q_norm -> transformer_blocks.*.attn1.norm_q
            blocks.*.attn.k_norm -> transformer_blocks.*.attn1.norm_k
            blocks.*.cross_attn.q_norm -> transformer_blocks.*.attn2.norm_q
            blocks.*.cross_attn.k_norm -> transformer_blocks.*.attn2.norm_k
        """,
        lacks="raymap_embedder.proj",
        source="diffusers.loaders.single_file_utils.convert_sana_transformer_to_diffusers; the norms of Sana 1.5 from "
        "huggingface/diffusers, scripts/convert_sana_video_to_diffusers.py",
    ),
    Checkpoint(
        model="Lumina2Transformer2DModel",
        convert="convert_lumina2_to_diffusers",
        config={"num_layers": 2},
        names=f"""
            cap_embedder.0 cap_embedder.1 t_embedder.mlp.0 t_embedder.mlp.2
            final_layer.adaLN_modulation.1 final_layer.linear {_NEXT_DIT}
            noise_refiner.*.adaLN_modulation.1 layers.*.adaLN_modulation.1
            {
            " ".join(
                f"{block}.*.{layer}"
                for block in ("noise_refiner", "context_refiner", "layers")
                for layer in (
                    "feed_forward.w1",
                    "feed_forward.w2",
                    "feed_forward.w3",
                    "attention_norm1",
                    "attention_norm2",
                )
            )
        }
        """,
        rows={
            f"{block}.*.attention.qkv": 2304 + 768 + 768
            for block in ("noise_refiner", "context_refiner", "layers")
        },
        same=r"x_embedder|.*\.ffn_norm\d",
    ),
    Checkpoint(
        model="ZImageTransformer2DModel",
        convert="convert_z_image_transformer_checkpoint_to_diffusers",
        config={"n_layers": 2},
        names=f"x_embedder final_layer.linear final_layer.adaLN_modulation.1 {_NEXT_DIT}",
        same=r"t_embedder|cap_embedder|.*\.(feed_forward|adaLN_modulation|attention_norm\d|ffn_norm\d)",
    ),
    Checkpoint(
        model="Krea2Transformer2DModel",
        convert="convert_krea2_transformer_checkpoint_to_diffusers",
        config={"num_layers": 2},
        names=f"""
            first tmlp.0 tmlp.2 tproj.1 txtmlp.0.scale txtmlp.1 txtmlp.3 txtfusion.projector last.linear last.norm.scale
            {_KREA_BLOCK}
        """,
    ),
    Checkpoint(
        model="QwenImage21Transformer2DModel",
        convert="convert_qwen_image21_transformer_checkpoint_to_diffusers",
        config={"num_layers": 2},
        names="transformer_blocks.*.img_mlp.gate_up",
        same=r"(?!.*(gate_layer|img_mlp\.proj))",
    ),
    Checkpoint(
        model="Ideogram4Transformer2DModel",
        convert="_convert_non_diffusers_ideogram4_lora_to_diffusers",
        lora=True,
        config={"num_layers": 2},
        names="layers.*.attention.qkv layers.*.attention.o",
        same=r"(?!.*attention\.to)",
    ),
    Checkpoint(
        model="CosmosTransformer3DModel",
        convert="convert_cosmos_transformer_checkpoint_to_diffusers",
        config={"num_layers": 2, "extra_pos_embed_type": None},
        names=f"""
            t_embedder.1.linear_1 t_embedder.1.linear_2 t_embedding_norm x_embedder.proj.1
            final_layer.adaln_modulation.1 final_layer.adaln_modulation.2 final_layer.linear
            blocks.*.mlp.layer1 blocks.*.mlp.layer2
            {
            " ".join(
                f"blocks.*.adaln_modulation_{part}.{n}"
                for part in ("self_attn", "cross_attn", "mlp")
                for n in (1, 2)
            )
        }
            {
            " ".join(
                f"blocks.*.{part}.{layer}"
                for part in ("self_attn", "cross_attn")
                for layer in ("q_proj", "k_proj", "v_proj", "output_proj", "q_norm", "k_norm")
            )
        }
        """,
        older=f"""
            t_embedder.1.linear_1 t_embedder.1.linear_2 affline_norm x_embedder.proj.1
            final_layer.adaLN_modulation.1 final_layer.adaLN_modulation.2 final_layer.linear {_COSMOS_1_BLOCK}
        """,
        older_root="net.",
        older_has="learnable_pos_embed",
    ),
)
