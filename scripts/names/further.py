"""Further checkpoints whose conversion is in no installed package, and after whose own names LoRAs are trained."""

from __future__ import annotations

from scripts.names.checkpoint import Checkpoint
from scripts.names.typed import joined, rows

_SCRIPTS = "huggingface/diffusers, scripts/convert_{}_to_diffusers.py"
_EMBEDDER = "{0}.mlp.0 -> {1}.linear_1\n{0}.mlp.2 -> {1}.linear_2"
_ROPE = {"short_factor": [1.0] * 48, "long_factor": [1.0] * 48}
"""Of OmniGen's width. The factors are no module's."""

_COSMOS_LAYER = "language_model.model.layers.*.{} -> layers.*.{}"
_COSMOS_SAME = (
    *("input_layernorm", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    *("input_layernorm_moe_gen", "post_attention_layernorm_moe_gen"),
    *("mlp_moe_gen.gate_proj", "mlp_moe_gen.up_proj", "mlp_moe_gen.down_proj"),
)
_JOYIMAGE = "\n".join(
    f"double_blocks.*.{stream}_attn_{layer} -> double_blocks.*.attn.{stream}_attn_{layer}"
    for stream in ("img", "txt")
    for layer in ("qkv", "q_norm", "k_norm", "proj")
)

CHECKPOINTS = (
    Checkpoint(
        model="OmniGenTransformer2DModel",
        config={"num_layers": 2, "rope_scaling": _ROPE},
        typed=f"""
            x_embedder.proj -> patch_embedding.output_image_proj
            input_x_embedder.proj -> patch_embedding.input_image_proj
            {_EMBEDDER.format("time_token", "time_token")}
            {_EMBEDDER.format("t_embedder", "t_embedder")}
            final_layer.adaLN_modulation.1 -> norm_out.linear
            final_layer.linear -> proj_out
            llm.norm -> norm
            llm.layers.*.self_attn.qkv_proj -> {joined("layers.*.self_attn.to_{}", "qkv")}
            {
            rows(
                "llm.layers.*.{} -> layers.*.{}",
                ("self_attn.o_proj", "self_attn.to_out.0"),
                ("mlp.gate_up_proj", "mlp.gate_up_proj"),
                ("mlp.down_proj", "mlp.down_proj"),
                ("input_layernorm", "input_layernorm"),
                ("post_attention_layernorm", "post_attention_layernorm"),
            )
        }
        """,
        source=_SCRIPTS.format("omnigen"),
    ),
    Checkpoint(
        model="Cosmos3OmniTransformer",
        config={"num_hidden_layers": 2},
        typed=f"""
            vae2llm -> proj_in
            llm2vae -> proj_out
            {_EMBEDDER.format("time_embedder", "time_embedder")}
            language_model.lm_head -> lm_head
            language_model.model.norm -> norm
            language_model.model.norm_moe_gen -> norm_moe_gen
            {rows(_COSMOS_LAYER, *((name, name) for name in _COSMOS_SAME))}
            {
            rows(
                _COSMOS_LAYER,
                ("self_attn.q_proj", "self_attn.to_q"),
                ("self_attn.k_proj", "self_attn.to_k"),
                ("self_attn.v_proj", "self_attn.to_v"),
                ("self_attn.o_proj", "self_attn.to_out"),
                ("self_attn.q_norm", "self_attn.norm_q"),
                ("self_attn.k_norm", "self_attn.norm_k"),
                ("self_attn.q_proj_moe_gen", "self_attn.add_q_proj"),
                ("self_attn.k_proj_moe_gen", "self_attn.add_k_proj"),
                ("self_attn.v_proj_moe_gen", "self_attn.add_v_proj"),
                ("self_attn.o_proj_moe_gen", "self_attn.to_add_out"),
                ("self_attn.q_norm_moe_gen", "self_attn.norm_added_q"),
                ("self_attn.k_norm_moe_gen", "self_attn.norm_added_k"),
            )
        }
        """,
        source="hao-ai-lab/FastVideo, tests/local_tests/cosmos3/test_cosmos3_dit_parity.py, which compares the outputs",
    ),
    Checkpoint(
        model="EasyAnimateTransformer3DModel",
        config={"num_layers": 2, "mmdit_layers": 2, "in_channels": 16, "out_channels": 16, "patch_size": 2},
        typed=rows(
            "transformer_blocks.*.attn2.{} -> transformer_blocks.*.attn1.{}",
            ("to_q", "add_q_proj"),
            ("to_k", "add_k_proj"),
            ("to_v", "add_v_proj"),
            ("to_out.0", "to_add_out"),
            ("norm_q", "norm_added_q"),
            ("norm_k", "norm_added_k"),
        ),
        needs="transformer_blocks.0.txt_ff.net.2",
        same=r"(?!.*\.(add_[qkv]_proj|to_add_out|norm_added_[qk])$)",
        source="aigc-apps/EasyAnimate, easyanimate/models/{attention,processor}.py",
    ),
    Checkpoint(
        model="PRXTransformer2DModel",
        config={"depth": 2},
        typed=rows(
            "blocks.*.{} -> blocks.*.attention.{}",
            ("img_qkv_proj", "img_qkv_proj"),
            ("txt_kv_proj", "txt_kv_proj"),
            ("qk_norm.query_norm", "norm_q"),
            ("qk_norm.key_norm", "norm_k"),
            ("k_norm", "norm_added_k"),
            ("attn_out", "to_out.0"),
        ),
        same=r"(?!.*\.attention\.)",
        source=_SCRIPTS.format("prx"),
    ),
    Checkpoint(
        model="SanaWMTransformer3DModel",
        config={"num_layers": 2},
        typed=_EMBEDDER.format("t_embedder", "t_embedder"),
        needs="raymap_embedder.proj",
        same="(?!t_embedder)",
        source="NVlabs/Sana, diffusion/model/nets/sana_multi_scale_video_camctrl.py and sana_blocks.py",
    ),
    *(
        Checkpoint(
            model=model,
            config={"num_layers": 2},
            spelt=_JOYIMAGE,
            same=".",
            source=_SCRIPTS.format("joyimage_edit"),
        )
        for model in ("JoyImageEditTransformer3DModel", "JoyImageEditPlusTransformer3DModel")
    ),
)
"""JoyImage's names in ComfyUI are those of diffusers; its first checkpoints and DiffSynth's trainer have others."""
