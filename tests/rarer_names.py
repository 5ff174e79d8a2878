"""What layers are called in files that some program would not load, typed."""

from __future__ import annotations

from rows import AB, BARE, DEFAULT, KOHYA

MLX, SMALL = ("lora_a", "lora_b"), ("lora_a.weight", "lora_b.weight")

CALLED = {
    "sd": (
        (
            "unet.unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            AB,
            "unet/down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        (
            "unet.module.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            AB,
            "unet/down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        (
            "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out",
            KOHYA,
            "unet/down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
        ),
        (
            "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
            KOHYA,
            "unet/down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        (
            "unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
            KOHYA,
            "unet/down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        (
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            SMALL,
            "unet/down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        (
            "base_model.model.unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            AB,
            "unet/down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        (
            "unet._orig_mod.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            AB,
            "unet/down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        ("lora_te_encoder_layers_0_mlp_fc1", KOHYA, "text_encoder/encoder.layers.0.mlp.fc1"),
        (
            "text_encoder.base_model.model.text_model.encoder.layers.0.mlp.fc1",
            AB,
            "text_encoder/encoder.layers.0.mlp.fc1",
        ),
        ("lycoris_text_model_encoder_layers_0_mlp_fc1", KOHYA, "text_encoder/encoder.layers.0.mlp.fc1"),
        ("lycoris_te_text_model_encoder_layers_0_mlp_fc1", KOHYA, "text_encoder/encoder.layers.0.mlp.fc1"),
        (
            "lycoris_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
            KOHYA,
            "unet/down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
    ),
    "sdxl": (
        (
            "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q",
            AB,
            "unet/mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        ("diffusion_model.middle_block.1.proj_in", KOHYA, "unet/mid_block.attentions.0.proj_in"),
        ("middle_block.1.proj_in", AB, "unet/mid_block.attentions.0.proj_in"),
        ("middle_block_1_proj_in", KOHYA, "unet/mid_block.attentions.0.proj_in"),
        ("lycoris_unet_middle_block_1_proj_in", KOHYA, "unet/mid_block.attentions.0.proj_in"),
        ("lycoris_te1_text_model_encoder_layers_0_mlp_fc1", KOHYA, "text_encoder/encoder.layers.0.mlp.fc1"),
        ("lycoris_te2_text_projection", KOHYA, "text_encoder_2/text_projection"),
        ("lora_te2_text_projection", KOHYA, "text_encoder_2/text_projection"),
        ("lora_te2_text_model_text_projection", KOHYA, "text_encoder_2/text_projection"),
        ("text_encoder_2.text_projection", AB, "text_encoder_2/text_projection"),
        ("text_encoders.clip_g.transformer.text_projection", AB, "text_encoder_2/text_projection"),
    ),
    "flux": (
        (
            "transformer.transformer.transformer_blocks.0.attn.to_q",
            AB,
            "transformer/transformer_blocks.0.attn.to_q",
        ),
        (
            "transformer_single_transformer_blocks_0_attn_to_k",
            KOHYA,
            "transformer/single_transformer_blocks.0.attn.to_k",
        ),
        ("diffusion_model.transformer_blocks.0.attn.to_q", AB, "transformer/transformer_blocks.0.attn.to_q"),
        (
            "diffusion_model.diffusion_model.double_blocks.0.img_attn.qkv",
            AB,
            "transformer/transformer_blocks.0.attn to_q to_k to_v",
        ),
        (
            "model.diffusion_model.double_blocks.0.img_attn.qkv",
            AB,
            "transformer/transformer_blocks.0.attn to_q to_k to_v",
        ),
        (
            "transformer.double_blocks.0.img_attn.qkv",
            AB,
            "transformer/transformer_blocks.0.attn to_q to_k to_v",
        ),
        ("transformer.transformer_blocks.0.attn.to_q", BARE, "transformer/transformer_blocks.0.attn.to_q"),
        ("pipe.transformer.transformer_blocks.0.attn.to_q", AB, "transformer/transformer_blocks.0.attn.to_q"),
        (
            "transformer.model.transformer_blocks.0.attn.to_q",
            AB,
            "transformer/transformer_blocks.0.attn.to_q",
        ),
        (
            "transformer.module.transformer_blocks.0.attn.to_q",
            AB,
            "transformer/transformer_blocks.0.attn.to_q",
        ),
        (
            "model.transformer.transformer_blocks.0.attn.to_q",
            AB,
            "transformer/transformer_blocks.0.attn.to_q",
        ),
        (
            "lora_unet_transformer_blocks_0_attn_to_out",
            KOHYA,
            "transformer/transformer_blocks.0.attn.to_out.0",
        ),
        (
            "lora_transformer_time_text_embed_text_embedder_linear_1",
            KOHYA,
            "transformer/time_text_embed.text_embedder.linear_1",
        ),
        ("text_encoder.encoder.layers.0.mlp.fc1", AB, "text_encoder/encoder.layers.0.mlp.fc1"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", KOHYA, "text_encoder/encoder.layers.0.mlp.fc1"),
        (
            "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q",
            AB,
            "text_encoder_2/encoder.block.0.layer.0.SelfAttention.q",
        ),
        (
            "transformer.transformer_blocks.0.ff.linear1",
            BARE,
            "transformer/transformer_blocks.0.ff.net.0.proj",
        ),
        (
            "transformer.transformer_blocks.0.ff_context.linear2",
            BARE,
            "transformer/transformer_blocks.0.ff_context.net.2",
        ),
        ("double_blocks.0.img_attn.qkv", MLX, "transformer/transformer_blocks.0.attn to_q to_k to_v"),
        ("double_blocks.0.txt_mlp.layers.2", MLX, "transformer/transformer_blocks.0.ff_context.net.2"),
        ("single_blocks.0.linear2", MLX, "transformer/single_transformer_blocks.0.proj_out"),
    ),
    "sd3": (
        (
            "diffusion_model.joint_blocks.0.context_block.attn.qkv",
            AB,
            "transformer/transformer_blocks.0.attn add_q_proj add_k_proj add_v_proj",
        ),
        (
            "model.diffusion_model.joint_blocks.0.x_block.attn.qkv",
            AB,
            "transformer/transformer_blocks.0.attn to_q to_k to_v",
        ),
        ("diffusion_model.transformer_blocks.0.attn.to_q", AB, "transformer/transformer_blocks.0.attn.to_q"),
    ),
    "wan": (
        ("model.diffusion_model.blocks.0.self_attn.q", AB, "transformer/blocks.0.attn1.to_q"),
        ("blocks.0.cross_attn.k", KOHYA, "transformer/blocks.0.attn2.to_k"),
        ("generator.model.blocks.0.self_attn.q", DEFAULT, "transformer/blocks.0.attn1.to_q"),
        ("model.blocks.0.self_attn.q", DEFAULT, "transformer/blocks.0.attn1.to_q"),
        ("transformer.base_model.model.blocks.0.attn1.to_q", AB, "transformer/blocks.0.attn1.to_q"),
        ("dit.model.blocks.0.self_attn.q", AB, "transformer/blocks.0.attn1.to_q"),
        ("lora_unet_blocks_0_attn1_to_q", KOHYA, "transformer/blocks.0.attn1.to_q"),
        ("lora_unet_blocks_0_ffn_net_0_proj", KOHYA, "transformer/blocks.0.ffn.net.0.proj"),
        ("diffusion_model.blocks.0.attn1.to_q", AB, "transformer/blocks.0.attn1.to_q"),
        ("lycoris_blocks_0_attn1_to_q", KOHYA, "transformer/blocks.0.attn1.to_q"),
        ("lycoris_blocks_0_self_attn_q", KOHYA, "transformer/blocks.0.attn1.to_q"),
        ("base_model.model.model.blocks.0.self_attn.q", AB, "transformer/blocks.0.attn1.to_q"),
    ),
    "QwenImagePipeline": (
        ("transformer.transformer_blocks.0.attn.to_q", DEFAULT, "transformer/transformer_blocks.0.attn.to_q"),
        (
            "model.diffusion_model.transformer_blocks.0.attn.to_q",
            KOHYA,
            "transformer/transformer_blocks.0.attn.to_q",
        ),
        (
            "base_model.model.transformer_blocks.0.attn.add_q_proj",
            AB,
            "transformer/transformer_blocks.0.attn.add_q_proj",
        ),
        ("transformer_transformer_blocks_0_attn_to_q", KOHYA, "transformer/transformer_blocks.0.attn.to_q"),
        ("lora_unet__transformer_blocks_0_attn_to_q", KOHYA, "transformer/transformer_blocks.0.attn.to_q"),
        ("pipe.dit.transformer_blocks.0.attn.to_q", DEFAULT, "transformer/transformer_blocks.0.attn.to_q"),
        ("dit.transformer_blocks.0.img_mlp.net.2", DEFAULT, "transformer/transformer_blocks.0.img_mlp.net.2"),
        ("img_in", AB, "transformer/img_in"),
        (
            "time_text_embed.timestep_embedder.linear_1",
            AB,
            "transformer/time_text_embed.timestep_embedder.linear_1",
        ),
        ("transformer_blocks.0.attn.to_qkv", AB, "transformer/transformer_blocks.0.attn to_q to_k to_v"),
        (
            "transformer_blocks.0.attn.add_qkv_proj",
            DEFAULT,
            "transformer/transformer_blocks.0.attn add_q_proj add_k_proj add_v_proj",
        ),
    ),
    "ZImagePipeline": (
        (
            "lycoris_noise_refiner_0_adaLN_modulation_0",
            KOHYA,
            "transformer/noise_refiner.0.adaLN_modulation.0",
        ),
        (
            "diffusion_model.context_refiner.0.attention.qkv",
            AB,
            "transformer/context_refiner.0.attention to_q to_k to_v",
        ),
        ("base_model.model.layers.0.attention.to_q", AB, "transformer/layers.0.attention.to_q"),
        ("diffusion_model.cap_embedder.1", AB, "transformer/cap_embedder.1"),
        ("diffusion_model.t_embedder.mlp.0", AB, "transformer/t_embedder.mlp.0"),
        ("diffusion_model.x_embedder", AB, "transformer/all_x_embedder.2-1"),
        ("diffusion_model.final_layer.linear", AB, "transformer/all_final_layer.2-1.linear"),
        ("lora_unet_all_final_layer_2-1_linear", KOHYA, "transformer/all_final_layer.2-1.linear"),
        ("diffusion_model.all_x_embedder.2-1", AB, "transformer/all_x_embedder.2-1"),
        ("transformer.layers.0.attention.to_out.0", DEFAULT, "transformer/layers.0.attention.to_out.0"),
        ("lora_unet_layers_0_attention_out", KOHYA, "transformer/layers.0.attention.to_out.0"),
        ("layers_0_attention_to_q", KOHYA, "transformer/layers.0.attention.to_q"),
    ),
    "LTXPipeline": (
        ("velocity_model.transformer_blocks.0.attn1.to_q", AB, "transformer/transformer_blocks.0.attn1.to_q"),
        (
            "model.diffusion_model.transformer_blocks.0.attn1.to_q",
            AB,
            "transformer/transformer_blocks.0.attn1.to_q",
        ),
        (
            "lora_unet_transformer_blocks_0_ff_net_0_proj",
            KOHYA,
            "transformer/transformer_blocks.0.ff.net.0.proj",
        ),
        ("diffusion_model.patchify_proj", AB, "transformer/proj_in"),
        ("diffusion_model.adaln_single.linear", AB, "transformer/time_embed.linear"),
    ),
    "LTX2Pipeline": (
        (
            "base_model.model.velocity_model.transformer_blocks.0.attn1.to_q",
            AB,
            "transformer/transformer_blocks.0.attn1.to_q",
        ),
    ),
    "HunyuanVideoPipeline": (
        (
            "diffusion_model.double_blocks.0.img_attn.qkv",
            AB,
            "transformer/transformer_blocks.0.attn to_q to_k to_v",
        ),
        (
            "model.diffusion_model.double_blocks.0.img_attn_qkv",
            AB,
            "transformer/transformer_blocks.0.attn to_q to_k to_v",
        ),
        (
            "module.double_blocks.0.img_attn_qkv",
            DEFAULT,
            "transformer/transformer_blocks.0.attn to_q to_k to_v",
        ),
        ("lora_unet_transformer_blocks_0_attn_to_q", KOHYA, "transformer/transformer_blocks.0.attn.to_q"),
    ),
    "AuraFlowPipeline": (
        (
            "lora_unet_double_layers_0_attn_w1q",
            KOHYA,
            "transformer/joint_transformer_blocks.0.attn.add_q_proj",
        ),
        ("diffusion_model.single_layers.0.attn.w1q", AB, "transformer/single_transformer_blocks.0.attn.to_q"),
        (
            "lycoris_joint_transformer_blocks_0_attn_to_q",
            KOHYA,
            "transformer/joint_transformer_blocks.0.attn.to_q",
        ),
    ),
    "Lumina2Pipeline": (
        ("transformer.layers.0.attn.to_q", AB, "transformer/layers.0.attn.to_q"),
        (
            "lora_unet_noise_refiner_0_feed_forward_w1",
            KOHYA,
            "transformer/noise_refiner.0.feed_forward.linear_1",
        ),
        ("diffusion_model.cap_embedder.1", AB, "transformer/time_caption_embed.caption_embedder.1"),
    ),
    "ChromaPipeline": (
        (
            "diffusion_model.distilled_guidance_layer.in_proj",
            AB,
            "transformer/distilled_guidance_layer.in_proj",
        ),
        (
            "transformer.double_blocks.0.img_attn.qkv",
            AB,
            "transformer/transformer_blocks.0.attn to_q to_k to_v",
        ),
    ),
    "CogVideoXPipeline": (
        (
            "base_model.model.transformer_blocks.0.attn1.to_v",
            AB,
            "transformer/transformer_blocks.0.attn1.to_v",
        ),
        ("lora_unet_transformer_blocks_0_attn1_to_q", KOHYA, "transformer/transformer_blocks.0.attn1.to_q"),
        (
            "lora_unet__transformer_blocks_0_attn1_to_out_0",
            KOHYA,
            "transformer/transformer_blocks.0.attn1.to_out.0",
        ),
    ),
    "SanaPipeline": (
        ("lora_unet_transformer_blocks_0_attn1_to_q", KOHYA, "transformer/transformer_blocks.0.attn1.to_q"),
        (
            "base_model.model.transformer_blocks.0.attn2.to_q",
            AB,
            "transformer/transformer_blocks.0.attn2.to_q",
        ),
    ),
    "Kandinsky5T2IPipeline": (
        (
            "diffusion_model.visual_transformer_blocks.0.self_attention.to_query",
            AB,
            "transformer/visual_transformer_blocks.0.self_attention.to_query",
        ),
        (
            "lora_unet_visual_transformer_blocks_0_self_attention_to_query",
            KOHYA,
            "transformer/visual_transformer_blocks.0.self_attention.to_query",
        ),
    ),
    "HiDreamImagePipeline": (
        (
            "lora_unet_double_stream_blocks_0_block_attn1_to_q",
            KOHYA,
            "transformer/double_stream_blocks.0.block.attn1.to_q",
        ),
        (
            "base_model.model.double_stream_blocks.0.block.attn1.to_q",
            AB,
            "transformer/double_stream_blocks.0.block.attn1.to_q",
        ),
    ),
    "Krea2Pipeline": (
        ("base_model.model.blocks.0.attn.wq", AB, "transformer/transformer_blocks.0.attn.to_q"),
        ("transformer.blocks.0.attn.wq", AB, "transformer/transformer_blocks.0.attn.to_q"),
        ("lycoris_transformer_blocks_0_attn_to_q", KOHYA, "transformer/transformer_blocks.0.attn.to_q"),
    ),
    "Flux2Pipeline": (
        (
            "single_transformer_blocks.0.attn.to_qkv_mlp_proj",
            DEFAULT,
            "transformer/single_transformer_blocks.0.attn.to_qkv_mlp_proj",
        ),
        (
            "model.diffusion_model.double_blocks.0.img_attn.qkv",
            AB,
            "transformer/transformer_blocks.0.attn to_q to_k to_v",
        ),
        (
            "diffusion_model.double_stream_modulation_img.lin",
            AB,
            "transformer/double_stream_modulation_img.linear",
        ),
        ("lora_unet_single_stream_modulation_lin", KOHYA, "transformer/single_stream_modulation.linear"),
        (
            "diffusion_model.time_in.in_layer",
            AB,
            "transformer/time_guidance_embed.timestep_embedder.linear_1",
        ),
    ),
    "PixArtAlphaPipeline": (
        ("lora_unet_transformer_blocks_0_attn1_to_q", KOHYA, "transformer/transformer_blocks.0.attn1.to_q"),
        ("transformer.transformer_blocks.0.attn1.to_q", AB, "transformer/transformer_blocks.0.attn1.to_q"),
    ),
    "MochiPipeline": (
        ("diffusion_model.blocks.0.attn.qkv_x", AB, "transformer/transformer_blocks.0.attn1 to_q to_k to_v"),
        ("transformer.transformer_blocks.0.attn1.to_q", AB, "transformer/transformer_blocks.0.attn1.to_q"),
    ),
}
"""By pipeline: what a layer is called, the suffixes of its factors, and the module; or the part of the path that
several have in common, whose rows follow each other, and the rest of each."""
