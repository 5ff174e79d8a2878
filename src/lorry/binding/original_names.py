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

_KANDINSKY = {
    "time_embedding.linear_1": "to_time_embed.1",
    "time_embedding.linear_2": "to_time_embed.3",
    "encoder_hid_proj.projection_linear": "projection_lin",
    "encoder_hid_proj.projection_norm": "projection_ln",
    "conv_in": "in_layer",
    "conv_norm_out": "out_layer.0",
    "conv_out": "out_layer.2",
}
_KANDINSKY_LAYERS = {
    "add_time_condition": "feature_pooling",
    "to_q": "to_query",
    "to_k": "to_key",
    "to_v": "to_value",
    "to_out.0": "output_layer",
}
_KANDINSKY_BLOCK = re.compile(
    r"(?P<side>down|up)_blocks\.(?P<block>\d+)\.(?P<kind>resnets_in|attentions|resnets_out)\.(?P<layer>\d+)\."
)

_UNIT = re.compile(
    r"(?:(?:down|up)_blocks\.\d+|mid_block)\."
    r"(?:resnets|attentions|temp_convs|temp_attentions|downsamplers|upsamplers)\.\d+"
)


def unet_names(paths: Iterable[str]) -> Names:
    """Return the original name of each module path of a UNet of Stable Diffusion, Stable Cascade or Kandinsky 3, and
    its pieces.

    Where a model is none of them, nothing is left.
    """
    paths = list(paths)
    if any(path.startswith("add_time_condition.") for path in paths):
        return kandinsky_names(paths)
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


def kandinsky_names(paths: Iterable[str]) -> Names:
    """Return the original name of each module path of Kandinsky 3's UNet that the original calls otherwise.

    Its blocks hold triples of a layer, an attention and a layer; the attention of the block itself, which is the first
    one here, stands beside them.

    Source: huggingface/diffusers, `scripts/convert_kandinsky3_unet.py`.
    """
    names = {}
    for path in paths:
        name = _KANDINSKY.get(path) or _KANDINSKY_BLOCK.sub(_in_triple, path)
        for own, original in _KANDINSKY_LAYERS.items():
            name = re.sub(rf"(?<![^.]){re.escape(own)}(?![^.])", original, name)
        if name != path:
            names[name] = (Piece(path),)
    return names


def _in_triple(found: re.Match[str]) -> str:
    block, layer = f"{found['side']}_samples.{found['block']}", int(found["layer"])
    if found["kind"] == "attentions":
        return f"{block}.resnet_attn_blocks.{layer - 1}.1." if layer else f"{block}.self_attention_block."
    return f"{block}.resnet_attn_blocks.{layer}.{0 if found['kind'] == 'resnets_in' else 2}."


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

    AudioLDM 2 has several attentions a layer, one behind the other. Paths that the original checkpoint has no name for
    are left out; on a model that is no UNet nothing is left.

    Source for AudioLDM 2: huggingface/diffusers, `scripts/convert_original_audioldm2_to_diffusers.py`.
    """
    paths = list(paths)
    units = {match[0] for path in paths if (match := _UNIT.match(path))}
    if not _attentions_stand_by_layers(units):
        return {}
    modelscope = OUTSIDE_MODELSCOPE if "mid_block.temp_attentions.0" in units else {}
    originals = OUTSIDE_BLOCKS | dict(_middle(units)) | modelscope | dict(_numbered_units(units))
    names = {}
    for path in paths:
        unit, rest = _split(path, originals)
        if unit is None:
            continue
        inside = _inside(unit, rest)
        if inside or not rest:
            names[f"{originals[unit]}.{inside}" if inside else originals[unit]] = path
    return names


def _attentions_stand_by_layers(units: set[str]) -> bool:
    blocks = {unit.rpartition(".attentions.")[0] for unit in units if ".attentions." in unit} - {"mid_block"}
    counts = [(_count(units, f"{block}.attentions."), _count(units, f"{block}.resnets.")) for block in blocks]
    return all(count <= layers or (layers and count % layers == 0) for count, layers in counts)


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


def _middle(units: set[str]) -> Iterator[tuple[str, str]]:
    attentions = max(1, _count(units, "mid_block.attentions."))
    for number in range(attentions):
        yield f"mid_block.attentions.{number}", f"middle_block.{1 + number}"
    yield "mid_block.resnets.1", f"middle_block.{1 + attentions}"


def _numbered_units(units: set[str]) -> Iterator[tuple[str, str]]:
    timed = "mid_block.temp_attentions.0" in units
    number = 1
    for block in range(count_blocks(units, "down_blocks")):
        attentions = _attentions_a_layer(units, f"down_blocks.{block}")
        for layer in range(_count(units, f"down_blocks.{block}.resnets.")):
            yield from _layer(f"down_blocks.{block}", layer, attentions, f"input_blocks.{number}")
            number += 1
        if _count(units, f"down_blocks.{block}.downsamplers."):
            original = f"input_blocks.{number}.op" if timed else f"input_blocks.{number}.0.op"
            yield f"down_blocks.{block}.downsamplers.0.conv", original
            number += 1
    number = 0
    for block in range(count_blocks(units, "up_blocks")):
        attentions = _attentions_a_layer(units, f"up_blocks.{block}")
        for layer in range(_count(units, f"up_blocks.{block}.resnets.")):
            yield from _layer(f"up_blocks.{block}", layer, attentions, f"output_blocks.{number}")
            number += 1
        position = 1 + attentions * (2 if timed else 1)
        yield f"up_blocks.{block}.upsamplers.0.conv", f"output_blocks.{number - 1}.{position}.conv"


def _attentions_a_layer(units: set[str], block: str) -> int:
    attentions, layers = _count(units, f"{block}.attentions."), _count(units, f"{block}.resnets.")
    return min(attentions, max(1, attentions // max(1, layers)))


def _layer(block: str, layer: int, attentions: int, original: str) -> Iterator[tuple[str, str]]:
    yield f"{block}.resnets.{layer}", f"{original}.0"
    yield f"{block}.temp_convs.{layer}", f"{original}.0.temopral_conv"
    for number in range(attentions):
        yield f"{block}.attentions.{layer * attentions + number}", f"{original}.{1 + number}"
    yield f"{block}.temp_attentions.{layer}", f"{original}.2"


def count_blocks(units: Iterable[str], kind: str) -> int:
    """Return how many blocks of `kind` the unit paths name."""
    return len({unit.split(".")[1] for unit in units if unit.startswith(f"{kind}.")})
