"""The names of the Open Model Initiative: OneTrainer's of spring 2025, of its backups until July 2026, and InvokeAI's.

    transformer.double_blocks.0.img_attn.qkv.0.lora_down.weight
    unet.input_blocks.4.1.transformer_blocks.0.attn1.to_q.alpha
    clip_g.text_model.encoder.layers.0.self_attn.k_proj.lora_up.weight

Pattern: `transformer.`, `unet.`, or what the text encoder is (`clip_l.`, `clip_g.`, `t5.`, `llama.`), the dotted path
of a module of the original checkpoint, with a number behind it where that module is several layers of diffusers' model
(`qkv.0` is q), and kohya's suffixes, or those of a LoHa, a LoKr or an OFT of the input side. Tokens that were trained
along stand under `bundle_emb.`. HiDream's names are diffusers' own, and its files are read as `dotted-kohya`.

Source: Nerogar/OneTrainer at 1e0263b3, `modules/util/convert/lora/*` and `modules/modelSaver/mixin/LoRASaverMixin.py`;
invoke-ai/InvokeAI at 8e71a8a5, `invokeai/backend/model_manager/omi/vendor` and
`invokeai/backend/patches/lora_conversions/flux_onetrainer_bfl_lora_conversion_utils.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, final

from lorry.adapters import Adapter, Entry
from lorry.dialects._embeddings import bundled
from lorry.dialects._exporting import ONETRAINER_SUFFIXES, check_writable, find_obstacles, spelled
from lorry.dialects._headers import plain_header
from lorry.dialects._naming import CLIP_ROOT, dotted, with_clip_root
from lorry.dialects._paths import omi_path
from lorry.dialects.base import BlockNames, Dialect
from lorry.files import TensorFile
from lorry.names import DENOISER, Target

_KEY = re.compile(
    r"(transformer\.(double_blocks|single_blocks|joint_blocks|blocks\.\d+\.(attn\.qkv|cross_attn\.kv_linear)\.\d+)"
    r"|unet\.(input_blocks|middle_block|output_blocks|(down|up)_blocks\.\d+\.\d+\.attention\.attn)"
    r"|clip_l|clip_g|t5|llama)\."
    r"(.+\.)?(lora_down\.weight|hada_w1_a|lokr_w1|lokr_w1_a|oft_R\.weight)"
)
_UNET = frozenset(("input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out"))
_ROOTS = _UNET | frozenset(
    (
        *(
            "double_blocks",
            "single_blocks",
            "joint_blocks",
            "blocks",
            "final_layer",
            "distilled_guidance_layer",
        ),
        *(
            "double_stream_blocks",
            "single_stream_blocks",
            "caption_projection",
            "context_embedder",
            "t_block",
        ),
        *(f"{name}_in" for name in ("img", "txt", "time", "vector", "guidance")),
        *(f"{name}_embedder" for name in ("x", "y", "t", "p", "ar", "csize")),
    )
)
"""How the paths of the original checkpoints begin."""
_CASCADE = frozenset(
    (
        *("down_blocks", "up_blocks", "down_downscalers", "up_upscalers", "embedding", "clf"),
        *(f"clip_{name}_mapper" for name in ("img", "txt", "txt_pooled")),
    )
)
"""Of Stable Cascade's prior."""
_DENOISERS = (DENOISER, "unet", "transformer")
_CLIP_ROOTS = (f"{CLIP_ROOT}.", "text_projection")
_T5_ROOT = "encoder.block."
_CLIP_L_WIDTH, _CLIP_G_WIDTH = 768, 1280
"""HunyuanVideo's second text encoder is a CLIP-L; that of SDXL and SD3 a CLIP-G, as is Stable Cascade's only one."""


@final
class Omi(Dialect):
    """The names of the Open Model Initiative."""

    name: ClassVar[str] = "omi"
    block_names: ClassVar[BlockNames] = "original"
    numbers_parts: ClassVar[bool] = True
    only_for: ClassVar[tuple[str, ...]] = (
        "UNet2DConditionModel",
        "StableCascadeUNet",
        "FluxTransformer2DModel",
        "SD3Transformer2DModel",
        "ChromaTransformer2DModel",
        "HiDreamImageTransformer2DModel",
        "HunyuanVideoTransformer3DModel",
        "PixArtTransformer2DModel",
    )
    before: ClassVar[tuple[str, ...]] = ("dotted-kohya", "diffusers")

    def claims(self, file: TensorFile) -> bool:
        return any(map(_KEY.fullmatch, file.tensors))

    def obstacles(self, adapter: Adapter) -> Mapping[str, str]:
        nameless = {str(e.target): "no name for this layer" for e in adapter.entries if _find_name(e) is None}
        return nameless | find_obstacles(adapter, ONETRAINER_SUFFIXES)

    def write(self, adapter: Adapter) -> TensorFile:
        """Return a file of this dialect, with the original checkpoint's names that the adapter has.

        Raises:
            UnsupportedAdapterError: the adapter holds what OneTrainer does not train, or has no original names.
        """
        check_writable(adapter, self.obstacles(adapter), self.name, has_tokens=True)
        tensors = spelled(adapter.entries, ONETRAINER_SUFFIXES, lambda entry: _find_name(entry) or "")
        return TensorFile(tensors | bundled(adapter.embeddings), plain_header(adapter), adapter.source)


def _find_name(entry: Entry) -> str | None:
    """Return what stands before the suffixes of a layer; None where it has no name."""
    if entry.target.flat and entry.target.component in _DENOISERS:
        return None
    target = with_clip_root(dotted(entry.target))
    container = _find_container(target, entry.delta.shape)
    return None if container is None else f"{container}.{omi_path(target.path)}"


def _find_container(target: Target, shape: Sequence[int]) -> str | None:
    component, path = target.component, target.path
    root = path.partition(".")[0]
    if component == "prior":
        return "unet" if root in _CASCADE else None
    if component in _DENOISERS and root in _ROOTS:
        return "unet" if root in _UNET else "transformer"
    if component.startswith("text_encoder"):
        if path.startswith(_T5_ROOT):
            return "t5"
        if path.startswith(_CLIP_ROOTS):
            is_first = component == "text_encoder" and _CLIP_G_WIDTH not in shape
            return "clip_l" if is_first or _CLIP_L_WIDTH in shape else "clip_g"
        return _find_llama(target)
    return None


def _find_llama(target: Target) -> str | None:
    """Return the container of HiDream's Llama, or of HunyuanVideo's, which OneTrainer takes for a part of Llava."""
    if target.component == "text_encoder" and target.path.startswith("layers."):
        return "llama.language_model.model"
    return "llama" if target.component == "text_encoder_4" else None
