"""Layers of the architectures, by the names that trainers and checkpoints have for them, typed."""

from __future__ import annotations

from collections.abc import Mapping

from rows import own

# --- layers, in the names of their models -------------------------------------------------------------------------

DOWN = "down_blocks.1.attentions.0.transformer_blocks.0"
UNET = own(
    "unet", f"{DOWN}.attn1.to_q", f"{DOWN}.attn1.to_out.0", f"{DOWN}.attn2.to_k", f"{DOWN}.ff.net.0.proj",
    "down_blocks.1.attentions.0.proj_in", "down_blocks.0.resnets.0.conv1", "mid_block.resnets.0.time_emb_proj",
    "up_blocks.0.upsamplers.0.conv", "time_embedding.linear_1", "conv_in",
)  # fmt: skip
ATTENTION = own("unet", *(f"{DOWN}.attn{i}.to_{p}" for i in (1, 2) for p in ("q", "k", "v", "out.0")))
_LAYER = "encoder.layers.0"
CLIP = {
    f"text_model.{_LAYER}.{end}": f"text_encoder/{_LAYER}.{end}"
    for end in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1")
}
CLIP_2 = {stem: modules.replace("text_encoder/", "text_encoder_2/") for stem, modules in CLIP.items()}
_T5 = ("encoder.block.0.layer.0.SelfAttention.q", "encoder.block.0.layer.1.DenseReluDense.wi_0")


def t5(component: str) -> dict[str, str]:
    return own(component, *_T5)


SGM = {
    f"{block}.{layer}": f"unet/{path}.{layer}"
    for block, path in (
        ("input_blocks.3.1", "down_blocks.1.attentions.0"),
        ("middle_block.1", "mid_block.attentions.0"),
    )
    for layer in ("proj_in", "transformer_blocks.1.attn2.to_v", "transformer_blocks.0.ff.net.0.proj")
} | {
    "input_blocks.0.0": "unet/conv_in",
    "input_blocks.2.0.op": "unet/down_blocks.0.downsamplers.0.conv",
    "input_blocks.3.0.in_layers.2": "unet/down_blocks.1.resnets.0.conv1",
    "input_blocks.3.0.skip_connection": "unet/down_blocks.1.resnets.0.conv_shortcut",
    "output_blocks.1.2.conv": "unet/up_blocks.0.upsamplers.0.conv",
    "output_blocks.2.0.emb_layers.1": "unet/up_blocks.1.resnets.0.time_emb_proj",
    "time_embed.2": "unet/time_embedding.linear_2",
    "label_emb.0.0": "unet/add_embedding.linear_1",
}  # fmt: skip


def qkv(path: str, names: tuple[str, ...] = ("to_q", "to_k", "to_v")) -> str:
    return " + ".join(f"transformer/{path}.{name}" for name in names)


def tails(layers: Mapping[str, str]) -> dict[str, str]:
    """OMI's: the parts of a fused layer by a number."""
    return {
        f"{stem}.{i}" if " + " in modules else stem: module
        for stem, modules in layers.items()
        for i, module in enumerate(modules.split(" + "))
    }


ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
_DOUBLE, _SINGLE = "transformer_blocks.0", "single_transformer_blocks.1"
BFL_BLOCKS = {
    "double_blocks.0.img_attn.qkv": qkv(f"{_DOUBLE}.attn"),
    "double_blocks.0.txt_attn.qkv": qkv(f"{_DOUBLE}.attn", ADDED),
    "double_blocks.0.img_attn.proj": f"transformer/{_DOUBLE}.attn.to_out.0",
    "double_blocks.0.txt_attn.proj": f"transformer/{_DOUBLE}.attn.to_add_out",
    "double_blocks.0.img_mlp.0": f"transformer/{_DOUBLE}.ff.net.0.proj",
    "double_blocks.0.txt_mlp.2": f"transformer/{_DOUBLE}.ff_context.net.2",
    "single_blocks.1.linear1": qkv(_SINGLE, ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
    "single_blocks.1.linear2": f"transformer/{_SINGLE}.proj_out",
}
BFL = BFL_BLOCKS | {
    "double_blocks.0.img_mod.lin": f"transformer/{_DOUBLE}.norm1.linear",
    "single_blocks.1.modulation.lin": f"transformer/{_SINGLE}.norm.linear",
    "img_in": "transformer/x_embedder",
    "txt_in": "transformer/context_embedder",
    "time_in.in_layer": "transformer/time_text_embed.timestep_embedder.linear_1",
    "vector_in.out_layer": "transformer/time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "transformer/proj_out",
    "final_layer.adaLN_modulation.1": "~transformer/norm_out.linear",
}
FLUX = own(
    "transformer", f"{_DOUBLE}.attn.to_q", f"{_DOUBLE}.attn.add_k_proj", f"{_DOUBLE}.attn.to_out.0",
    f"{_DOUBLE}.ff.net.2", f"{_SINGLE}.attn.to_k", f"{_SINGLE}.proj_mlp", f"{_SINGLE}.proj_out", "x_embedder",
)  # fmt: skip
DIFFSYNTH = {
    "blocks.0.attn.a_to_qkv": qkv(f"{_DOUBLE}.attn"),
    "blocks.0.attn.b_to_qkv": qkv(f"{_DOUBLE}.attn", ADDED),
    "blocks.0.attn.a_to_out": f"transformer/{_DOUBLE}.attn.to_out.0",
    "blocks.0.attn.b_to_out": f"transformer/{_DOUBLE}.attn.to_add_out",
    "blocks.0.ff_a.0": f"transformer/{_DOUBLE}.ff.net.0.proj",
    "blocks.0.ff_b.2": f"transformer/{_DOUBLE}.ff_context.net.2",
    "blocks.0.norm1_a.linear": f"transformer/{_DOUBLE}.norm1.linear",
    "blocks.0.norm1_b.linear": f"transformer/{_DOUBLE}.norm1_context.linear",
    "single_blocks.1.to_qkv_mlp": qkv(_SINGLE, ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
    "single_blocks.1.proj_out": f"transformer/{_SINGLE}.proj_out",
    "single_blocks.1.norm.linear": f"transformer/{_SINGLE}.norm.linear",
}
"""The names of DiffSynth-Studio's own FLUX.1."""
XLABS = {
    "double_blocks.0.processor.qkv_lora1": qkv(f"{_DOUBLE}.attn"),
    "double_blocks.0.processor.proj_lora1": f"transformer/{_DOUBLE}.attn.to_out.0",
    "double_blocks.0.processor.qkv_lora2": qkv(f"{_DOUBLE}.attn", ADDED),
    "double_blocks.0.processor.proj_lora2": f"transformer/{_DOUBLE}.attn.to_add_out",
    "single_blocks.1.processor.qkv_lora": qkv(f"{_SINGLE}.attn"),
    "single_blocks.1.processor.proj_lora": f"transformer/{_SINGLE}.proj_out",
}
SD3 = {
    "joint_blocks.0.context_block.attn.qkv": qkv(f"{_DOUBLE}.attn", ADDED),
    "joint_blocks.0.x_block.attn.qkv": qkv(f"{_DOUBLE}.attn"),
    "joint_blocks.0.x_block.attn.proj": f"transformer/{_DOUBLE}.attn.to_out.0",
    "joint_blocks.0.context_block.mlp.fc1": f"transformer/{_DOUBLE}.ff_context.net.0.proj",
    "joint_blocks.0.context_block.adaLN_modulation.1": f"transformer/{_DOUBLE}.norm1_context.linear",
    "joint_blocks.1.context_block.adaLN_modulation.1": "~transformer/transformer_blocks.1.norm1_context.linear",
    "final_layer.adaLN_modulation.1": "~transformer/norm_out.linear",
}
SD3_OWN = own("transformer", f"{_DOUBLE}.attn.to_q", f"{_DOUBLE}.attn.add_k_proj", f"{_DOUBLE}.ff.net.0.proj")
WAN = {
    "blocks.0.self_attn.q": "transformer/blocks.0.attn1.to_q",
    "blocks.0.self_attn.o": "transformer/blocks.0.attn1.to_out.0",
    "blocks.1.cross_attn.k": "transformer/blocks.1.attn2.to_k",
    "blocks.1.ffn.0": "transformer/blocks.1.ffn.net.0.proj",
    "blocks.1.ffn.2": "transformer/blocks.1.ffn.net.2",
    "time_embedding.0": "transformer/condition_embedder.time_embedder.linear_1",
    "time_projection.1": "transformer/condition_embedder.time_proj",
    "head.head": "transformer/proj_out",
}
WAN_OWN = own("transformer", "blocks.0.attn1.to_q", "blocks.1.ffn.net.2", "condition_embedder.time_proj")

FLUX2 = {
    "double_blocks.0.img_attn.qkv": qkv("transformer_blocks.0.attn"),
    "double_blocks.0.img_mlp.0": "transformer/transformer_blocks.0.ff.linear_in",
    "double_blocks.0.txt_attn.proj": "transformer/transformer_blocks.0.attn.to_add_out",
    "single_blocks.0.linear1": "transformer/single_transformer_blocks.0.attn.to_qkv_mlp_proj",
    "single_blocks.0.linear2": "transformer/single_transformer_blocks.0.attn.to_out",
    "final_layer.adaLN_modulation.1": "~transformer/norm_out.linear",
}
FLUX2_OWN = own(
    "transformer", "transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_qkv_mlp_proj"
)
FLUX3 = {
    "content_mode_blocks.image.0.q_proj": "transformer/mode_blocks.image.0.attn.to_q",
    "content_mode_blocks.image.0.attn_out": "transformer/mode_blocks.image.0.attn.to_out.0",
    "content_mode_blocks.image_cond.0.mlp_in": "transformer/mode_blocks.image_cond.0.ff.linear_in",
}
CHROMA = {
    stem: modules.replace("single_transformer_blocks.1", "single_transformer_blocks.0")
    for stem, modules in ((s.replace("single_blocks.1", "single_blocks.0"), m) for s, m in BFL_BLOCKS.items())
} | {"distilled_guidance_layer.layers.0.in_layer": "transformer/distilled_guidance_layer.layers.0.linear_1"}
QWEN = own("transformer", *(f"transformer_blocks.0.{end}" for end in (
    "attn.to_q", "attn.add_k_proj", "attn.to_out.0", "img_mod.1", "img_mlp.net.0.proj", "txt_mlp.net.2",
)))  # fmt: skip
Z_IMAGE_OWN = own("transformer", *(f"layers.0.{end}" for end in (
    "attention.to_q", "attention.to_v", "attention.to_out.0", "feed_forward.w1", "feed_forward.w3",
    "adaLN_modulation.0",
)))  # fmt: skip
Z_IMAGE = {
    "layers.0.attention.qkv": qkv("layers.0.attention"),
    "layers.0.attention.out": "transformer/layers.0.attention.to_out.0",
    "layers.0.feed_forward.w2": "transformer/layers.0.feed_forward.w2",
    "noise_refiner.0.attention.qkv": qkv("noise_refiner.0.attention"),
}
Z_IMAGE_DOTS = {
    f"layers.0.attention.to.{part}": f"transformer/layers.0.attention.to_{part}" for part in "qkv"
}
LUMINA2 = {
    "layers.0.attention.qkv": qkv("layers.0.attn"),
    "layers.0.attention.out": "transformer/layers.0.attn.to_out.0",
    "layers.0.feed_forward.w1": "transformer/layers.0.feed_forward.linear_1",
    "layers.0.feed_forward.w3": "transformer/layers.0.feed_forward.linear_3",
}
HUNYUAN_VIDEO = {
    "double_blocks.0.img_attn_qkv": qkv("transformer_blocks.0.attn"),
    "double_blocks.0.txt_attn_qkv": qkv("transformer_blocks.0.attn", ADDED),
    "double_blocks.0.img_attn_proj": "transformer/transformer_blocks.0.attn.to_out.0",
    "double_blocks.0.img_mlp.fc1": "transformer/transformer_blocks.0.ff.net.0.proj",
    "single_blocks.0.linear1": qkv(
        "single_transformer_blocks.0", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ),
    "single_blocks.0.linear2": "transformer/single_transformer_blocks.0.proj_out",
    "txt_in.individual_token_refiner.blocks.0.self_attn_qkv": qkv(
        "context_embedder.token_refiner.refiner_blocks.0.attn"
    ),
    "final_layer.adaLN_modulation.1": "~transformer/norm_out.linear",
}
HUNYUAN_OMI = {
    "double_blocks.0.img_attn_qkv.0": "transformer/transformer_blocks.0.attn.to_q",
    "double_blocks.0.txt_attn_qkv.2": "transformer/transformer_blocks.0.attn.add_v_proj",
    "double_blocks.0.img_mlp.fc0": "transformer/transformer_blocks.0.ff.net.0.proj",
    "double_blocks.0.txt_mlp.fc2": "transformer/transformer_blocks.0.ff_context.net.2",
    "single_blocks.0.linear1.3": "transformer/single_transformer_blocks.0.proj_mlp",
    "txt_in.individual_token_refiner.blocks.0.mlp.fc0": (
        "transformer/context_embedder.token_refiner.refiner_blocks.0.ff.net.0.proj"
    ),
    "txt_in.t_embedder.linear_1": "transformer/context_embedder.time_text_embed.timestep_embedder.linear_1",
    "final_layer.adaLN_modulation.1": "~transformer/norm_out.linear",
}
HUNYUAN_VIDEO_OWN = own(
    "transformer", "transformer_blocks.0.attn.to_q", "transformer_blocks.0.ff.net.2",
    "single_transformer_blocks.0.proj_mlp",
)  # fmt: skip
HUNYUAN_IMAGE = {
    "double_blocks.0.img_attn_q": "transformer/transformer_blocks.0.attn.to_q",
    "double_blocks.0.img_attn_v": "transformer/transformer_blocks.0.attn.to_v",
    "double_blocks.0.img_mlp.fc1": "transformer/transformer_blocks.0.ff.net.0.proj",
    "double_blocks.0.txt_mlp.fc2": "transformer/transformer_blocks.0.ff_context.net.2",
}
OMI_FLUX = {stem.replace("img_in", "img_in.proj"): module for stem, module in tails(BFL).items()}
OMI_CHROMA = tails(CHROMA) | {"img_in.proj": "transformer/x_embedder"}
OMI_PIXART = {
    "x_embedder.proj": "transformer/pos_embed.proj",
    "t_block.1": "transformer/adaln_single.linear",
    "y_embedder.y_proj.fc1": "transformer/caption_projection.linear_1",
    "blocks.0.attn.qkv.0": "transformer/transformer_blocks.0.attn1.to_q",
    "blocks.0.attn.qkv.2": "transformer/transformer_blocks.0.attn1.to_v",
    "blocks.0.attn.proj": "transformer/transformer_blocks.0.attn1.to_out.0",
    "blocks.0.cross_attn.q_linear": "transformer/transformer_blocks.0.attn2.to_q",
    "blocks.0.cross_attn.kv_linear.1": "transformer/transformer_blocks.0.attn2.to_v",
    "blocks.0.mlp.fc1": "transformer/transformer_blocks.0.ff.net.0.proj",
    "final_layer.linear": "transformer/proj_out",
}
LTX = own("transformer", "transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn2.to_out.0",
          "transformer_blocks.0.ff.net.0.proj")  # fmt: skip
LTX2 = own("transformer", "transformer_blocks.0.audio_attn1.to_q", "transformer_blocks.0.attn2.to_v")
LTX2_CONNECTORS = {
    "video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q": (
        "connectors/video_connector.transformer_blocks.0.attn1.to_q"
    ),
    "audio_embeddings_connector.transformer_1d_blocks.0.ff.net.2": (
        "connectors/audio_connector.transformer_blocks.0.ff.net.2"
    ),
}
HIDREAM = own("transformer", *(f"double_stream_blocks.0.block.{end}" for end in (
    "attn1.to_q", "attn1.to_out", "attn1.to_k_t", "ff_i.shared_experts.w1", "ff_i.experts.0.w2",
)))  # fmt: skip
ANIMA = {
    "blocks.0.self_attn.q_proj": "transformer/transformer_blocks.0.attn1.to_q",
    "blocks.0.cross_attn.k_proj": "transformer/transformer_blocks.0.attn2.to_k",
    "blocks.0.cross_attn.output_proj": "transformer/transformer_blocks.0.attn2.to_out.0",
    "blocks.0.mlp.layer1": "transformer/transformer_blocks.0.ff.net.0.proj",
    "blocks.0.adaln_modulation_cross_attn.2": "transformer/transformer_blocks.0.norm2.linear_2",
}
ANIMA_TEXT = {
    f"llm_adapter.{path}": f"text_conditioner/{path}"
    for path in ("blocks.0.self_attn.q_proj", "blocks.0.cross_attn.k_proj", "blocks.0.mlp.0")
}
KREA2 = {
    "blocks.0.attn.wq": "transformer/transformer_blocks.0.attn.to_q",
    "blocks.0.attn.wk": "transformer/transformer_blocks.0.attn.to_k",
    "blocks.0.attn.gate": "transformer/transformer_blocks.0.attn.to_gate",
    "blocks.0.mlp.up": "transformer/transformer_blocks.0.ff.up",
    "txtfusion.layerwise_blocks.0.attn.wo": "transformer/text_fusion.layerwise_blocks.0.attn.to_out.0",
}
KREA2_OWN = own("transformer", "transformer_blocks.0.attn.to_q", "text_fusion.refiner_blocks.0.ff.gate")
KREA2_FUSED = {
    "transformer_blocks.0.attn.to_qkv": qkv("transformer_blocks.0.attn"),
    "text_fusion.refiner_blocks.0.attn.to_qkv": qkv("text_fusion.refiner_blocks.0.attn"),
}
"""SimpleTuner's, of a model that computes with fused layers."""
IDEOGRAM = {
    "layers.0.attention.qkv": qkv("layers.0.attention"),
    "layers.0.feed_forward.w2": "transformer/layers.0.feed_forward.w2",
}
IDEOGRAM_OWN = own("transformer", "layers.0.attention.to_q", "layers.0.adaln_modulation")
MINIMAX = {
    "blocks.0.attn.qkv_proj": qkv("transformer_blocks.0.attn"),
    "blocks.0.attn.out_proj": "transformer/transformer_blocks.0.attn.to_out.0",
}
_CASCADE = "down_blocks.0.2"
CASCADE_TORCH = {
    f"{_CASCADE}.attention.attn.to_q": f"prior/{_CASCADE}.attention.to_q",
    f"{_CASCADE}.attention.attn.out_proj": f"prior/{_CASCADE}.attention.to_out.0",
    f"{_CASCADE}.kv_mapper.1": f"prior/{_CASCADE}.kv_mapper.1",
    "down_blocks.0.1.mapper": "prior/down_blocks.0.1.mapper",
}
CASCADE_OMI = {
    f"{_CASCADE}.attention.attn.in_proj.{i}": f"prior/{_CASCADE}.attention.to_{part}"
    for i, part in enumerate("qkv")
}
"""Stable Cascade's attentions are torch's own in its checkpoints, whose three projections are one weight."""
OTHERS = {
    "ErnieImagePipeline": ("layers.0.self_attention.to_q", "layers.0.mlp.up_proj"),
    "CogVideoXPipeline": ("transformer_blocks.0.attn1.to_q", "transformer_blocks.0.ff.net.2"),
    "CogView4Pipeline": ("transformer_blocks.0.attn1.to_k", "transformer_blocks.0.norm1.linear"),
    "SanaPipeline": ("transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn2.to_v"),
    "AuraFlowPipeline": ("joint_transformer_blocks.0.attn.add_k_proj", "joint_transformer_blocks.0.ff.linear_1"),
    "Kandinsky5T2VPipeline": ("visual_transformer_blocks.0.self_attention.to_query",
                              "text_transformer_blocks.0.feed_forward.in_layer"),
    "BriaFiboPipeline": ("transformer_blocks.0.attn.add_q_proj", "transformer_blocks.0.ff.net.0.proj"),
    "Cosmos2_5_PredictBasePipeline": ("transformer_blocks.0.attn2.to_k", "transformer_blocks.0.norm1.linear_2"),
    "HeliosPipeline": ("blocks.0.attn1.to_q", "blocks.0.ffn.net.0.proj"),
    "SkyReelsV2Pipeline": ("blocks.0.attn2.to_out.0", "blocks.0.ffn.net.2"),
    "HunyuanDiTPipeline": ("blocks.0.attn1.to_q", "blocks.0.ff.net.2"),
}  # fmt: skip
"""Layers under diffusers' names, of pipelines whose files have no other."""
