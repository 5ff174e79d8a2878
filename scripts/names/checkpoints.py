"""The layouts of original checkpoints: their modules' names, typed once a block; the code that converts them is public.

A `*` stands for a block's number. What is typed here is checked by what comes out: every name must land on a module of
the live model, and every module of the model must be reached (`generate.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Checkpoint:
    """One architecture: the class of the live model, and the names that its original checkpoint has."""

    model: str
    """The class, in diffusers."""
    names: str
    """Of the original's modules."""
    convert: str = ""
    """The function of `diffusers.loaders.single_file_utils`; empty where the names are those of the live model."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the class's own defaults, which are those of a published checkpoint."""
    blocks: int = 2
    """How many blocks of each kind the config asks for."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Rows of modules that the conversion cuts at numbers of its own."""
    extra: str = ""
    """Parameters that are no module's weight, and that the conversion asks for."""
    new: str = ""
    """A pattern of live modules that the original has nothing for."""


FLUX_DOUBLE = """
    double_blocks.*.img_attn.qkv double_blocks.*.txt_attn.qkv
    double_blocks.*.img_attn.proj double_blocks.*.txt_attn.proj
    double_blocks.*.img_attn.norm.query_norm.scale double_blocks.*.img_attn.norm.key_norm.scale
    double_blocks.*.txt_attn.norm.query_norm.scale double_blocks.*.txt_attn.norm.key_norm.scale
    double_blocks.*.img_mlp.0 double_blocks.*.img_mlp.2 double_blocks.*.txt_mlp.0 double_blocks.*.txt_mlp.2
"""
FLUX_SINGLE = """
    single_blocks.*.linear1 single_blocks.*.linear2
    single_blocks.*.norm.query_norm.scale single_blocks.*.norm.key_norm.scale
"""
WAN = """
    patch_embedding text_embedding.0 text_embedding.2 time_embedding.0 time_embedding.2 time_projection.1 head.head
    blocks.*.self_attn.q blocks.*.self_attn.k blocks.*.self_attn.v blocks.*.self_attn.o
    blocks.*.self_attn.norm_q blocks.*.self_attn.norm_k
    blocks.*.cross_attn.q blocks.*.cross_attn.k blocks.*.cross_attn.v blocks.*.cross_attn.o
    blocks.*.cross_attn.norm_q blocks.*.cross_attn.norm_k
    blocks.*.ffn.0 blocks.*.ffn.2 blocks.*.norm3
    blocks.*.cross_attn.k_img blocks.*.cross_attn.v_img blocks.*.cross_attn.norm_k_img
    img_emb.proj.0 img_emb.proj.1 img_emb.proj.3 img_emb.proj.4
"""

CHECKPOINTS = (
    Checkpoint(
        model="FluxTransformer2DModel",
        convert="convert_flux_transformer_checkpoint_to_diffusers",
        config={"num_layers": 2, "num_single_layers": 2, "guidance_embeds": True},
        names=f"""
            img_in txt_in time_in.in_layer time_in.out_layer vector_in.in_layer vector_in.out_layer
            guidance_in.in_layer guidance_in.out_layer final_layer.linear final_layer.adaLN_modulation.1
            {FLUX_DOUBLE} {FLUX_SINGLE}
            double_blocks.*.img_mod.lin double_blocks.*.txt_mod.lin single_blocks.*.modulation.lin
        """,
        rows={"single_blocks.*.linear1": 3 * 3072 + 12288},
    ),
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
        model="WanTransformer3DModel",
        convert="convert_wan_transformer_to_diffusers",
        config={"num_layers": 2, "image_dim": 1280, "added_kv_proj_dim": 5120},
        names=WAN,
    ),
)
