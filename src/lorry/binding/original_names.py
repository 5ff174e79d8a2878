"""Names that original checkpoints give to the modules of a UNet of diffusers, worked out from its module paths.

The UNets of Stable Diffusion were published with their blocks in one running count (`input_blocks.4.1`), which SDXL
files from kohya's trainer keep. Source: CompVis/latent-diffusion, `ldm/modules/diffusionmodules/openaimodel.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from lorry.binding.tables import Names, Piece

OUTSIDE_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
OUTSIDE_MODELSCOPE = {
    "transformer_in": "input_blocks.0.1",
    "mid_block.temp_convs.0": "middle_block.0.temopral_conv",
    "mid_block.temp_attentions.0": "middle_block.2",
    "mid_block.resnets.1": "middle_block.3",
    "mid_block.temp_convs.1": "middle_block.3.temopral_conv",
}
"""What differs in the video UNets of ModelScope, which have layers for time beside each of their own.

Source: huggingface/diffusers, `scripts/convert_ms_text_to_video_to_diffusers.py`.
"""
INSIDE_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
INSIDE_VIDEO = {
    "spatial_res_block": "",
    "temporal_res_block": "time_stack",
    "temporal_transformer_blocks": "time_stack",
}
"""What Stable Video Diffusion has inside its layers besides; the first is the layer itself in the original.

Source: huggingface/diffusers, `scripts/convert_svd_to_diffusers.py`.
"""
_HINT = "controlnet_cond_embedding"
_TIME_EMBEDDING = {"linear_1": "0", "linear_2": "2"}
_I2VGEN_ROOTS = {
    "image_latents_proj_in": "local_image_concat",
    "image_latents_context_embedding": "local_image_embedding",
}
_I2VGEN_ENCODER = {
    "norm1": "0.norm",
    "attn1.to_out.0": "0.fn.to_out.0",
    "ff.net.0.proj": "1.net.0.0",
    "ff.net.2": "1.net.2",
}

_UNIT = re.compile(
    r"(?:(?:down|up)_blocks\.\d+|mid_block)\."
    r"(?:resnets|attentions|temp_convs|temp_attentions|downsamplers|upsamplers)\.\d+"
)


def unet_names(paths: Iterable[str]) -> Names:
    """Return the original name of each module path of a UNet of Stable Diffusion or Stable Cascade, and its pieces.

    Where a model is neither, nothing is left.
    """
    paths = list(paths)
    found = {name: (Piece(path),) for name, path in sgm_names(paths).items()}
    return {**found, **i2vgen_names(paths), **controlnet_names(paths)} if found else cascade_names(paths)


def i2vgen_names(paths: Iterable[str]) -> Names:
    """Return the original name of each layer that I2VGen-XL has for its picture; of other models there are none.

    Source: huggingface/diffusers, `scripts/convert_i2vgen_to_diffusers.py`.
    """
    names: dict[str, tuple[Piece, ...]] = {}
    for path in paths:
        root, _, rest = path.partition(".")
        if root in _I2VGEN_ROOTS and rest:
            names[f"{_I2VGEN_ROOTS[root]}.{rest}"] = (Piece(path),)
        elif root == "image_latents_temporal_encoder" and rest in _I2VGEN_ENCODER:
            names[f"local_temporal_encoder.layers.0.{_I2VGEN_ENCODER[rest]}"] = (Piece(path),)
        elif path == "image_latents_temporal_encoder.attn1":
            parts = tuple(Piece(f"{path}.to_{part}") for part in "qkv")
            names["local_temporal_encoder.layers.0.0.fn.to_qkv"] = parts
    return names


def controlnet_names(paths: Iterable[str]) -> Names:
    """Return the original name of each layer that a ControlNet has besides its UNet's; of a UNet there are none.

    The picture's layers stand in one running count, with an activation after each.

    Source: lllyasviel/ControlNet, `cldm/cldm.py`.
    """
    last = sum(path.startswith(f"{_HINT}.blocks.") for path in paths) + 1
    names = {}
    for path in paths:
        root, _, rest = path.partition(".")
        if root == "controlnet_down_blocks" and rest:
            names[f"zero_convs.{rest}.0"] = path
        elif root == "controlnet_mid_block":
            names["middle_block_out.0"] = path
        elif root == _HINT and rest not in ("", "blocks"):
            number = {"conv_in": 0, "conv_out": last}.get(rest)
            number = int(rest.removeprefix("blocks.")) + 1 if number is None else number
            names[f"input_hint_block.{2 * number}"] = path
    return {name: (Piece(path),) for name, path in names.items()}


def cascade_names(paths: Iterable[str]) -> Names:
    """Return the original name of each attention's layers in a UNet of Stable Cascade; all other names are the same.

    Its attentions are torch's own, which have one weight for q, k and v; ComfyUI has three layers there. Its stage B
    calls the mapper of pooled text `clip_mapper`.

    Source: diffusers.loaders.single_file_utils.convert_stable_cascade_unet_single_file_to_diffusers.
    """
    paths = set(paths)
    names: dict[str, tuple[Piece, ...]] = {}
    for path in paths:
        attention, found, _ = path.partition(".attention.to_q")
        if found and f"{attention}.kv_mapper" in paths:
            own = f"{attention}.attention"
            q, k, v = (Piece(f"{own}.to_{part}") for part in "qkv")
            names[f"{own}.attn.in_proj"] = (q, k, v)
            names |= {f"{own}.attn.to_q": (q,), f"{own}.attn.to_k": (k,), f"{own}.attn.to_v": (v,)}
            names[f"{own}.attn.out_proj"] = (Piece(f"{own}.to_out.0"),)
    if names and "clip_txt_mapper" not in paths:
        names["clip_mapper"] = (Piece("clip_txt_pooled_mapper"),)
    return names


def sgm_names(paths: Iterable[str]) -> dict[str, str]:
    """Return the original name of each module path of a UNet, as {original name: path}.

    Paths that the original checkpoint has no name for are left out; on a model that is no UNet, or has several
    attentions a layer as AudioLDM 2 has, nothing is left.
    """
    paths = list(paths)
    units = {match[0] for path in paths if (match := _UNIT.match(path))}
    if not _has_one_attention_a_layer(units):
        return {}
    modelscope = OUTSIDE_MODELSCOPE if "mid_block.temp_attentions.0" in units else {}
    originals = OUTSIDE_BLOCKS | modelscope | dict(_numbered_units(units))
    names = {}
    for path in paths:
        unit, rest = _split(path, originals)
        if unit is None:
            continue
        inside = _inside(unit, rest)
        if inside or not rest:
            names[f"{originals[unit]}.{inside}" if inside else originals[unit]] = path
    return names


def _has_one_attention_a_layer(units: Iterable[str]) -> bool:
    units = list(units)
    blocks = {unit.rpartition(".attentions.")[0] for unit in units if ".attentions." in unit}
    return all(
        _count(units, f"{block}.attentions.") <= _count(units, f"{block}.resnets.") for block in blocks
    )


def _count(units: Iterable[str], prefix: str) -> int:
    return sum(unit.startswith(prefix) for unit in units)


def _split(path: str, units: dict[str, str]) -> tuple[str | None, str]:
    parts = path.split(".")
    for length in range(min(5, len(parts)), 0, -1):
        unit = ".".join(parts[:length])
        if unit in units:
            return unit, ".".join(parts[length:])
    return None, path


def _inside(unit: str, rest: str) -> str:
    """Return the original name of what is inside a layer, from its name there."""
    parts = rest.split(".")
    if ".resnets." in unit:
        parts = [INSIDE_RESNET.get(part, part) for part in parts]
    if parts[0] == "time_pos_embed":
        parts = [_TIME_EMBEDDING.get(part, part) for part in parts]
    return ".".join(part for part in (INSIDE_VIDEO.get(part, part) for part in parts) if part)


def _numbered_units(units: set[str]) -> Iterator[tuple[str, str]]:
    timed = "mid_block.temp_attentions.0" in units
    number = 1
    for block in range(count_blocks(units, "down_blocks")):
        for layer in range(_count(units, f"down_blocks.{block}.resnets.")):
            yield from _layer(f"down_blocks.{block}", layer, f"input_blocks.{number}")
            number += 1
        if _count(units, f"down_blocks.{block}.downsamplers."):
            original = f"input_blocks.{number}.op" if timed else f"input_blocks.{number}.0.op"
            yield f"down_blocks.{block}.downsamplers.0.conv", original
            number += 1
    number = 0
    for block in range(count_blocks(units, "up_blocks")):
        attentions = _count(units, f"up_blocks.{block}.attentions.")
        for layer in range(_count(units, f"up_blocks.{block}.resnets.")):
            yield from _layer(f"up_blocks.{block}", layer, f"output_blocks.{number}")
            number += 1
        position = 1 + bool(attentions) * (2 if timed else 1)
        yield f"up_blocks.{block}.upsamplers.0.conv", f"output_blocks.{number - 1}.{position}.conv"


def _layer(block: str, layer: int, original: str) -> Iterator[tuple[str, str]]:
    yield f"{block}.resnets.{layer}", f"{original}.0"
    yield f"{block}.temp_convs.{layer}", f"{original}.0.temopral_conv"
    yield f"{block}.attentions.{layer}", f"{original}.1"
    yield f"{block}.temp_attentions.{layer}", f"{original}.2"


def count_blocks(units: Iterable[str], kind: str) -> int:
    """Return how many blocks of `kind` the unit paths name."""
    return len({unit.split(".")[1] for unit in units if unit.startswith(f"{kind}.")})
