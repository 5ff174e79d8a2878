"""Module paths that a key spells in another way than the model. The second of a key's three layers."""

from __future__ import annotations

import re

_PROCESSOR = re.compile(
    r"(?P<attention>.+?)(?:\.processor)?\.(?P<layer>to_q|to_k|to_v|to_out|add_k_proj|add_v_proj)_lora"
    r"\.(?P<rest>down\.weight|up\.weight|alpha)"
)
_UNET_LAYERS = {"to_out": "to_out.0"}
_UNET_PROCESSORS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", **_UNET_LAYERS}
_ATTENTIONS = ("attn1", "attn2", "self_attn")
_CLIP_LAYERS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}

_XLABS = re.compile(
    r"(?P<block>.*\b(?:double|single)_blocks\.\d+)\.processor\.(?P<layer>(?:qkv|proj)_lora[12]?)"
    r"\.(?P<rest>down\.weight|up\.weight|alpha)"
)
ATTENTION_ROWS = "0-2"
"""Parts 0 to 2 of the rows of `linear1`: q, k and v. It has those of the MLP too."""
_XLABS_LAYERS = {
    "qkv_lora1": "img_attn.qkv",
    "proj_lora1": "img_attn.proj",
    "qkv_lora2": "txt_attn.qkv",
    "proj_lora2": "txt_attn.proj",
    "qkv_lora": f"linear1.{ATTENTION_ROWS}",
    "proj_lora": "linear2",
}
"""Source: XLabs-AI/x-flux, `src/flux/modules/layers.py`, the `…LoraProcessor` classes."""

_BLOCK = re.compile(r"(?:double|single)_blocks\.\d+")
_MODULATION = ".diff_m"
"""What Wan's distilled LoRAs call the difference of a block's `modulation`, which is a parameter and no layer."""
_NORM_SCALE = re.compile(r"(?P<norm>.*\.(?:query|key)_norm)\.scale$")
_SCALES = (".scale.diff", ".scale.set_weight")
"""Of norms whose weight an original checkpoint calls `scale`, whatever the norm is called."""

_RESPELT = (
    # AnimateDiff's motion modules; aMUSEd has attention blocks too, outside of any transformer block
    (re.compile(r"(\btransformer_blocks\.\d+\.)attention_blocks\.0\b"), r"\1attn1"),
    (re.compile(r"(\btransformer_blocks\.\d+\.)attention_blocks\.1\b"), r"\1attn2"),
    (re.compile(r"\btemporal_transformer\."), ""),
    (re.compile(r"\.to\.(?=[qkv]$)"), ".to_"),  # Z-Image files whose every underscore became a dot
    (re.compile(r"^sformer_blocks\."), "transformer_blocks."),  # exports of Flux.2
    (re.compile(r"^img_in\.proj$"), "img_in"),  # OMI
    (re.compile(r"(?<=mlp|ion)\.layers(?=\.\d$)"), ""),  # MLX, whose sequences have a level more
    (re.compile(r"\b(ff(?:_context)?)\.linear1$"), r"\1.net.0.proj"),  # mflux
    (re.compile(r"\b(ff(?:_context)?)\.linear2$"), r"\1.net.2"),
    (re.compile(r"^(?:transformer|unet)[._](?=(?:(?:single_)?transformer|down|up)_blocks|mid_block)"), ""),
)
_SIGNS = (
    *("attention_blocks.", "temporal_transformer.", ".to.", "img_in.proj"),
    *("mlp.layers.", "modulation.layers.", ".linear1", ".linear2"),
    *(
        f"{component}{dot}{blocks}"
        for dot in "._"
        for component, blocks in (
            *(("transformer", "transformer_blocks"), ("transformer", "single_transformer_blocks")),
            *(("unet", "down_blocks"), ("unet", "mid_block"), ("unet", "up_blocks")),
        )
    ),
)
"""One of these is in every path that is spelt in another way and does not begin with `_EXPORTED`."""
_EXPORTED = "sformer_blocks."
"""Of a Flux.2; it is a part of usual names too."""
_OMI = (
    (re.compile(r"img_in"), "img_in.proj"),
    (re.compile(r"((?:double_blocks|txt_in)\..*mlp\.)fc1"), r"\1fc0"),
    (re.compile(r"(txt_in\.t_embedder\.)mlp\.0"), r"\1linear_1"),
    (re.compile(r"(txt_in\.t_embedder\.)mlp\.2"), r"\1linear_2"),
)
"""What OMI calls layers of FLUX.1, Chroma and HunyuanVideo otherwise than their checkpoints do."""


def plain_key(key: str) -> str:
    """Return a key of a processor's under the name of the layer it changes; other keys unchanged.

    `….attn1.processor.to_out_lora.down.weight` becomes `….attn1.to_out.0.lora.down.weight`, a text encoder's
    `….self_attn.to_q_lora.up.weight` becomes `….self_attn.q_proj.lora.up.weight`, and XLabs'
    `double_blocks.0.processor.qkv_lora1.down.weight` becomes `double_blocks.0.img_attn.qkv.lora.down.weight`.

    The scale of a norm, a whole tensor in Flux's control LoRAs, becomes what ComfyUI calls it: `….norm.key_norm.scale`
    and `….norm.key_norm.scale.set_weight` become `….norm.key_norm.set_weight`. `….key_norm.scale.diff` becomes
    `….key_norm.diff`: ComfyUI calls the parameter of some norms `scale`, or did until it began to rename it at loading.

    Source: huggingface/diffusers v0.19, `models/attention_processor.py` (`LoRAAttnProcessor`) and `loaders.py`.
    """
    if key.endswith(_MODULATION):
        return f"{key.removesuffix(_MODULATION)}.modulation.diff"
    if key.endswith(_SCALES):
        norm, _, kind = key.rpartition(".scale.")
        return f"{norm}.{kind}"
    if key.endswith("_norm.scale") and (found := _NORM_SCALE.fullmatch(key)) is not None:
        return f"{found['norm']}.set_weight"
    if "_lora" not in key:
        return key
    if (found := _XLABS.fullmatch(key)) is not None and found["layer"] in _XLABS_LAYERS:
        return f"{found['block']}.{_XLABS_LAYERS[found['layer']]}.{_suffix(found['rest'])}"
    if (found := _PROCESSOR.fullmatch(key)) is not None:
        layers = _CLIP_LAYERS if found["attention"].endswith("self_attn") else _UNET_LAYERS
        layer = layers.get(found["layer"], found["layer"])
        return f"{found['attention']}.{layer}.{_suffix(found['rest'])}"
    return key


def processor_path(path: str, is_clip: bool) -> str | None:
    """Return the path of an attention's projection as an old processor's key has it, or None where it is none.

    `….attn1.to_out.0` becomes `….attn1.processor.to_out_lora`, CLIP's `….self_attn.q_proj` `….self_attn.to_q_lora`.
    """
    for layer, plain in (_CLIP_LAYERS if is_clip else _UNET_PROCESSORS).items():
        attention, dot, rest = path.rpartition(f".{plain}")
        if dot and not rest and attention.rpartition(".")[2] in _ATTENTIONS:
            return f"{attention}.{layer}_lora" if is_clip else f"{attention}.processor.{layer}_lora"
    return None


def xlabs_path(path: str) -> str | None:
    """Return the path of a block's layer as XLabs' key has it, or None where it has no name there."""
    for layer, plain in _XLABS_LAYERS.items():
        block = path.removesuffix(f".{plain}")
        if block != path and _BLOCK.fullmatch(block):
            return f"{block}.processor.{layer}"
    return None


_CONNECTOR_ROOTS = ("text_embedding_projection", "video_embeddings_connector", "audio_embeddings_connector")
_CONNECTORS = (
    ("_embeddings_connector", "_connector"),
    ("transformer_1d_blocks", "transformer_blocks"),
    ("aggregate_embed", "text_proj_in"),
    ("q_norm", "norm_q"),
    ("k_norm", "norm_k"),
)


def connectors_path(path: str) -> str | None:
    """Return the path in diffusers' connectors of a module that LTX-2's checkpoints have elsewhere, or None.

    They have it beside the transformer: `text_embedding_projection.aggregate_embed` is `text_proj_in`, and
    `video_embeddings_connector.transformer_1d_blocks.0.…` is `video_connector.transformer_blocks.0.…`. Flattened paths
    are taken too.

    Source: huggingface/diffusers v0.42, `scripts/convert_ltx2_to_diffusers.py` and `loaders/lora_conversion_utils.py`.
    """
    root = next((root for root in _CONNECTOR_ROOTS if path.startswith(root)), None)
    if root is None:
        return None
    if root == _CONNECTOR_ROOTS[0]:
        path = path[len(root) + 1 :]
    for original, own in _CONNECTORS:
        path = path.replace(original, own)
    return path or None


def connectors_name(path: str) -> str:
    """Return what LTX-2's checkpoints call a module of diffusers' connectors: the inverse of `connectors_path`."""
    for original, own in _CONNECTORS:
        path = path.replace(own, original)
    return f"{_CONNECTOR_ROOTS[0]}.{path}" if path.endswith("aggregate_embed") else path


def plain_path(path: str) -> str:
    """Return a module's path as its model has it, where a trainer's differs from it by a few words."""
    if path.startswith(_EXPORTED) or any(sign in path for sign in _SIGNS):
        for pattern, plain in _RESPELT:
            path = pattern.sub(plain, path)
    return path


def omi_path(path: str) -> str:
    """Return what OMI calls a module of an original checkpoint."""
    for pattern, name in _OMI:
        if (found := pattern.fullmatch(path)) is not None:
            return found.expand(name)
    return path


def _suffix(rest: str) -> str:
    return rest if rest == "alpha" else f"lora.{rest}"


def is_processor_key(key: str) -> bool:
    """Whether a key names an old attention processor or its text encoder's twin."""
    return "_lora." in key and _PROCESSOR.fullmatch(key) is not None


def is_xlabs_key(key: str) -> bool:
    """Whether a key names a processor of XLabs' trainer."""
    return ".processor." in key and _XLABS.fullmatch(key) is not None
