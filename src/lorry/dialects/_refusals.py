"""Files that are met in the same places as LoRAs, are recognised, and are something else."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from lorry.errors import some
from lorry.files import TensorFile


@final
@dataclass(frozen=True, slots=True)
class Refusal:
    """A kind of file that lorry refuses by name."""

    pattern: re.Pattern[str]
    """Found at the start of a key of such a file."""
    signs: tuple[str, ...]
    """One of these is in every key that the pattern finds, and is looked for in all keys at once."""
    what: str
    """Completes "x.safetensors is …", with what to do."""
    holds_for: Callable[[int, int], bool] = lambda found, _: found > 0
    """Whether the count of such keys, out of all, is enough."""
    unless: str = ""
    """What is in a key of a file that has an adapter besides; nothing is, where it is empty."""
    software: str = ""
    """What `software` in the metadata must name, where such keys alone do not tell."""


def _all(found: int, count: int) -> bool:
    return found == count


_LORM = (
    "a LoRM of ai-toolkit, whose factors stand in place of the weights that they were made of: another, smaller model "
    "and nothing to add to one. Ask its author for a LoRA"
)

REFUSALS = (
    Refusal(
        re.compile("lllite_"), ("lllite_",), "a ControlNet-LLLite, which is a control network and no LoRA"
    ),
    Refusal(
        re.compile(r"ip_adapter\.|image_proj\."),
        ("ip_adapter.", "image_proj."),
        "an IP-Adapter. Load it with `load_ip_adapter`",
    ),
    Refusal(
        re.compile("lora_controlnet$"),
        ("lora_controlnet",),
        "a Control-LoRA of Stability AI, which makes a ControlNet of a UNet: `lorry.control_net(file, unet)`",
    ),
    Refusal(
        re.compile(r"adapter\.(?:body|conv_in)\.|body\.\d+\.(?:in_conv|block[12])\.(?!.*lora)"),
        ("adapter.", "body."),
        "a T2I-Adapter. Load it with `T2IAdapter.from_pretrained`",
    ),
    Refusal(
        re.compile(
            r"(?:model\.diffusion_model|first_stage_model|cond_stage_model|conditioner\.embedders)\."
            r"(?!.*lora).*\.(?:weight|bias)$"
        ),
        ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.embedders."),
        "a whole checkpoint. Load it with `from_single_file`",
        unless=".matrix_A.",  # SAT's
    ),
    Refusal(
        re.compile(r"(?:(?:de|en)coder\.(?:conv_in|mid|conv_out)|(?:post_)?quant_conv)\."),
        ("coder.", "quant_conv."),
        "a VAE",
    ),
    Refusal(
        re.compile(r"string_to_param|emb_params$|<[^.]*>$|(?:clip_l|clip_g|t5)$"),
        ("string_to_param", "emb_params", "<", "clip_l", "clip_g", "t5"),
        "a textual inversion embedding. Load it with `load_textual_inversion`",
        _all,
    ),
    Refusal(
        re.compile(r".*\.(?:mlp_fc\d|mlp_context_fc\d|qkv_proj)\.lora_(?:down|up)$"),
        (".mlp_fc", ".mlp_context_fc", ".qkv_proj.lora_"),
        "a LoRA packed for Nunchaku's kernels. Ask its author for the original",
    ),
    Refusal(
        re.compile(r"(?:.*\.)?blocks\.\d+\.attn\.qkv_proj\.lora_[AB]\.(?!default\.)\w+\.weight$"),
        (".attn.qkv_proj.lora_",),
        "a MiniMax-H3 LoRA of which nothing says whether its rows of q, k and v go head by head: DiffSynth's do, and "
        "have `default` in their keys. If a trainer of DiffSynth's kind wrote it, rename the part after `lora_A` and "
        "`lora_B` to `default`; if not, remove that part",
    ),
    Refusal(
        re.compile(r"control_model\.|controlnet_(?:down_blocks|mid_block|cond_embedding|blocks)\.(?!.*lora)"),
        ("control_model.", "controlnet_"),
        "a ControlNet, which is a model of its own. Load it with `ControlNetModel.from_single_file`",
    ),
    Refusal(re.compile("hypernet"), ("hypernet",), "a hypernetwork, which is no LoRA"),
    Refusal(
        re.compile(r"(?!.*lora)(?:unet\.)?(?:down_blocks|mid_block|up_blocks)\..*\.(?:down|up)\.weight$"),
        (".down.weight", ".up.weight"),
        _LORM,
    ),
    Refusal(
        re.compile(r".*\.lora_(?:up|B)\.bias$"), ("lora_up.bias", "lora_B.bias"), _LORM, software="ai-toolkit"
    ),
)
"""Each kind by keys of published files of it, and of the code that writes them."""


def find_refusal(file: TensorFile) -> str | None:
    """Return what a file is, with its first keys, where it is something that lorry refuses; else None."""
    if not file.tensors:
        return None
    keys = "\n".join(file.tensors)
    for refusal in REFUSALS:
        has_adapter = refusal.unless and refusal.unless in keys
        told = refusal.software in file.metadata.get("software", "")
        if has_adapter or not told or not any(sign in keys for sign in refusal.signs):
            continue
        found = [key for key in file.tensors if refusal.pattern.match(key)]
        if found and refusal.holds_for(len(found), len(file.tensors)):
            return f"{refusal.what}. Its keys: {some((f'`{key}`' for key in sorted(found)), 3)}."
    return None
