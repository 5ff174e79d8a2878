"""The checkpoints of Wan and of what is made of it."""

from __future__ import annotations

from scripts.names.checkpoint import Checkpoint

WAN_BLOCK = (
    *(f"self_attn.{layer}" for layer in ("q", "k", "v", "o", "norm_q", "norm_k")),
    *(f"cross_attn.{layer}" for layer in ("q", "k", "v", "o", "norm_q", "norm_k")),
    *("ffn.0", "ffn.2", "norm3"),
)
WAN_BARE = "blocks.*.modulation head.modulation"
WAN_IMAGE_BLOCK = ("cross_attn.k_img", "cross_attn.v_img", "cross_attn.norm_k_img")
WAN = " ".join(
    (
        "patch_embedding text_embedding.0 text_embedding.2 time_embedding.0 time_embedding.2",
        "time_projection.1 head.head",
        *(f"blocks.*.{layer}" for layer in WAN_BLOCK),
    )
)
WAN_IMAGE = " ".join(
    (
        "img_emb.proj.0 img_emb.proj.1 img_emb.proj.3 img_emb.proj.4",
        *(f"blocks.*.{layer}" for layer in WAN_IMAGE_BLOCK),
    )
)

CHECKPOINTS = (
    Checkpoint(
        model="WanTransformer3DModel",
        convert="convert_wan_transformer_to_diffusers",
        config={"num_layers": 2, "image_dim": 1280, "added_kv_proj_dim": 5120},
        names=f"{WAN} {WAN_IMAGE}",
        bare=WAN_BARE,
    ),
    Checkpoint(
        model="SkyReelsV2Transformer3DModel",
        convert="convert_wan_transformer_to_diffusers",
        config={"num_layers": 2, "image_dim": 1280, "added_kv_proj_dim": 2048, "inject_sample_info": True},
        names=f"{WAN} {WAN_IMAGE}",
        bare=WAN_BARE,
        same="fps_",
    ),
    Checkpoint(
        model="ChronoEditTransformer3DModel",
        convert="convert_wan_transformer_to_diffusers",
        config={"num_layers": 2, "image_dim": 1280, "added_kv_proj_dim": 5120},
        names=f"{WAN} {WAN_IMAGE}",
        bare=WAN_BARE,
    ),
    *(
        Checkpoint(
            model=model,
            convert="convert_wan_transformer_to_diffusers",
            config={"num_layers": 2},
            names=WAN,
            bare=bare,
            same=same,
            like="WanTransformer3DModel",
        )
        for model, bare, same in (
            ("AnyFlowTransformer3DModel", WAN_BARE, "condition_embedder.delta_embedder"),
            ("AnyFlowFARTransformer3DModel", WAN_BARE, "condition_embedder.delta_embedder|far_"),
            ("HeliosTransformer3DModel", "blocks.*.modulation", "patch_(short|mid|long)|norm_out"),
        )
    ),
    Checkpoint(
        model="WanVACETransformer3DModel",
        convert="convert_wan_transformer_to_diffusers",
        config={"num_layers": 2, "vace_layers": [0, 1], "image_dim": 1280, "added_kv_proj_dim": 5120},
        names=f"""
            {WAN} {WAN_IMAGE} vace_blocks.0.before_proj vace_blocks.*.after_proj
            {" ".join(f"vace_blocks.*.{layer}" for layer in WAN_BLOCK + WAN_IMAGE_BLOCK)}
        """,
        bare=f"{WAN_BARE} vace_blocks.*.modulation",
        same="vace_patch_embedding",
    ),
    Checkpoint(
        model="WanAnimateTransformer3DModel",
        convert="convert_wan_transformer_to_diffusers",
        config={"num_layers": 10, "added_kv_proj_dim": 5120},
        blocks=10,
        names=f"""
            {WAN} {WAN_IMAGE} face_encoder.conv1_local.conv face_encoder.conv2.conv face_encoder.conv3.conv
            {
            " ".join(
                f"face_adapter.fuser_blocks.{block}.{layer}"
                for block in (0, 1)
                for layer in ("linear1_q", "linear1_kv", "linear2", "q_norm", "k_norm")
            )
        }
        """,
        bare=WAN_BARE,
        same="pose_patch_embedding|face_encoder.out_proj",
    ),
    Checkpoint(
        model="WanAnimate2Transformer3DModel",
        convert="convert_wan_animate_2_transformer_to_diffusers",
        config={"num_layers": 2},
        names=" ".join(f"blocks.*.block.{layer}" for layer in WAN_BLOCK + WAN_IMAGE_BLOCK),
        same="(?!blocks)",
    ),
)
