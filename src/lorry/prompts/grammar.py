r"""The grammar of adapters in prompts; `docs/prompts.md` is its reference.

    prompt  = { text | escape | tag }
    escape  = "\" tag                                    the tag as text
    tag     = "<" ("lora" | "lyco" | "lycoris") ":" name { ":" option } ">"
    option  = number [":" number]                        the denoiser's strength, then the text encoders'
            | number "@" position { "," number "@" position }      a strength by step
            | number "," number { "," number } | word    factors by block, or the name of such factors
            | "te=" number | "unet=" number | "lbw=" … | "start=" step | "stop=" step | "step=" step "-" step

Sources: AUTOMATIC1111/stable-diffusion-webui, `extensions-builtin/Lora/extra_networks_lora.py` (te, unet);
hako-mikan/sd-webui-lora-block-weight, README (lbw, start, stop, step); cheald/sd-webui-loractl, README (`@`);
mcmonkeyprojects/SwarmUI, `docs/Features/Prompt Syntax.md` (two numbers, denoiser first).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, final

from lorry.errors import PromptError
from lorry.prompts._options import read_tag
from lorry.prompts.tags import LoraTag

_TAG: Final = re.compile(r"(\\*)<(?:lora|lyco|lycoris):((?:\\.|[^\\<>])*)>", re.IGNORECASE | re.DOTALL)
_UNCLOSED: Final = re.compile(r"(?<!\\)<(?:lora|lyco|lycoris):[^<>]*(?![^<>]*>)", re.IGNORECASE)


@final
@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, with what it says of adapters taken out. Printing it gives a prompt that reads the same."""

    text: str
    """What is left for the text encoders: blanks around a tag are one blank, and none at either end."""
    loras: tuple[LoraTag, ...] = ()
    """In the order of the prompt; an adapter may be named more than once."""

    def __str__(self) -> str:
        text = _TAG.sub(lambda match: f"{match[1] * 2}\\{match[0][len(match[1]) :]}", self.text)
        return " ".join(filter(None, (text, *map(str, self.loras))))


def parse_prompt(text: str, *, te_first: bool = False) -> Prompt:
    r"""Read a prompt that may name adapters. Weights of words (`(cat:1.2)`) and other tags are left in the text.

    Args:
        text: the prompt.
        te_first: read `<lora:name:A:B>` as A1111 does, A for the text encoders and B for the denoiser. When false, A is
            for the denoiser, as in SwarmUI and ComfyUI. `te=` and `unet=` mean the same either way.

    Raises:
        PromptError: a tag cannot be read; says which, and why. No other text is an error.
    """
    pieces, loras, at = [""], [], 0
    for match in _TAG.finditer(text):
        backslashes, tag = len(match[1]), match[0][len(match[1]) :]
        pieces[-1] += text[at : match.start()] + "\\" * (backslashes // 2)
        at = match.end()
        if backslashes % 2:
            pieces[-1] += tag
            continue
        try:
            loras.append(read_tag(match[2], te_first=te_first))
        except PromptError as error:
            raise PromptError(f"`{tag}` (character {at - len(tag) + 1} of the prompt): {error}") from None
        pieces.append("")
    pieces[-1] += text[at:]
    return Prompt(_joined(pieces), tuple(loras))


def find_unclosed(text: str) -> list[str]:
    """Return what in the text of a prompt begins as a tag and has no end, so that it names no adapter."""
    return [match[0].rstrip() for match in _UNCLOSED.finditer(text)]


def _joined(pieces: list[str]) -> str:
    """Put the pieces between tags together, with one blank where there were blanks around a tag."""
    text = pieces[0]
    for piece in pieces[1:]:
        left, right = text.rstrip(), piece.lstrip()
        text = left + (" " if (left, right) != (text, piece) else "") + right
    return text.strip()
