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
INSIDE_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}

_UNIT = re.compile(
    r"(?:(?:down|up)_blocks\.\d+|mid_block)\.(?:resnets|attentions|downsamplers|upsamplers)\.\d+"
)


def unet_names(paths: Iterable[str]) -> Names:
    """Return the original name of each module path of a UNet of Stable Diffusion or Stable Cascade, and its pieces.

    Where a model is neither, nothing is left.
    """
    paths = list(paths)
    found = {name: (Piece(path),) for name, path in sgm_names(paths).items()}
    return found or cascade_names(paths)


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

    Paths that the original checkpoint has no name for are left out; on a model that is no UNet nothing is left.
    """
    paths = list(paths)
    units = OUTSIDE_BLOCKS | dict(_numbered_units(paths))
    names = {}
    for path in paths:
        unit, rest = _split(path, units)
        if unit is None:
            continue
        if ".resnets." in unit:
            rest = ".".join(INSIDE_RESNET.get(part, part) for part in rest.split(".")) if rest else ""
        names[f"{units[unit]}.{rest}" if rest else units[unit]] = path
    return names


def _split(path: str, units: dict[str, str]) -> tuple[str | None, str]:
    parts = path.split(".")
    for length in range(min(5, len(parts)), 0, -1):
        unit = ".".join(parts[:length])
        if unit in units:
            return unit, ".".join(parts[length:])
    return None, path


def _numbered_units(paths: list[str]) -> Iterator[tuple[str, str]]:
    units = {match[0] for path in paths if (match := _UNIT.match(path))}

    def count(prefix: str) -> int:
        return sum(unit.startswith(prefix) for unit in units)

    number = 1
    for block in range(count_blocks(units, "down_blocks")):
        for layer in range(count(f"down_blocks.{block}.resnets.")):
            yield f"down_blocks.{block}.resnets.{layer}", f"input_blocks.{number}.0"
            yield f"down_blocks.{block}.attentions.{layer}", f"input_blocks.{number}.1"
            number += 1
        if count(f"down_blocks.{block}.downsamplers."):
            yield f"down_blocks.{block}.downsamplers.0.conv", f"input_blocks.{number}.0.op"
            number += 1
    number = 0
    for block in range(count_blocks(units, "up_blocks")):
        attentions = count(f"up_blocks.{block}.attentions.")
        for layer in range(count(f"up_blocks.{block}.resnets.")):
            yield f"up_blocks.{block}.resnets.{layer}", f"output_blocks.{number}.0"
            yield f"up_blocks.{block}.attentions.{layer}", f"output_blocks.{number}.1"
            number += 1
        upsampler = f"output_blocks.{number - 1}.{2 if attentions else 1}.conv"
        yield f"up_blocks.{block}.upsamplers.0.conv", upsampler


def count_blocks(units: Iterable[str], kind: str) -> int:
    """Return how many blocks of `kind` the unit paths name."""
    return len({unit.split(".")[1] for unit in units if unit.startswith(f"{kind}.")})
