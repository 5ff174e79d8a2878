"""How a picture was made, as A1111 writes it into the picture.

    a cat <lora:ink:0.5>
    Negative prompt: a dog
    Steps: 20, Sampler: DDIM, CFG scale: 3, Seed: 3, Size: 64x64, Lora hashes: "ink: 6bff4c4ea08c", Version: …

Source: AUTOMATIC1111/stable-diffusion-webui, `modules/infotext_utils.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, final

from lorry.errors import PromptError

_NEGATIVE: Final = "Negative prompt:"
_SETTING: Final = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_FEWEST: Final = 3
"""A last line with fewer settings than this is taken for a line of the prompt."""


@final
@dataclass(frozen=True, slots=True)
class Parameters:
    """A prompt and the settings of a picture; printing gives the text that `parse_parameters` reads."""

    prompt: str
    """With the adapters' tags."""
    negative: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    """{name: value}, in the order of writing."""

    @property
    def lora_hashes(self) -> dict[str, str]:
        """{adapter's name: the first 12 digits of its file's hash}, where the text has them."""
        pairs = (pair.rpartition(":") for pair in self.settings.get("Lora hashes", "").split(","))
        return {name.strip(): digest.strip() for name, colon, digest in pairs if colon}

    def __str__(self) -> str:
        settings = ", ".join(f"{name}: {_quoted(value)}" for name, value in self.settings.items())
        negative = f"{_NEGATIVE} {self.negative}" if self.negative else ""
        return "\n".join(filter(None, (self.prompt, negative, settings)))


def parse_parameters(text: str) -> Parameters:
    """Read what A1111, Forge and lorry write into pictures.

    Raises:
        PromptError: the text has no line of settings.
    """
    *lines, last = text.strip().split("\n")
    settings = {name.strip(): _unquoted(value.strip()) for name, value in _SETTING.findall(last)}
    if len(settings) < _FEWEST or not {"Steps", "Seed"} <= settings.keys():
        raise PromptError(
            f"The parameters are not in A1111's form: expected a last line such as 'Steps: 20, Sampler: …, Seed: 1', "
            f"got {last[:60]!r}."
        )
    prompt, _, negative = "\n".join(["", *lines]).partition(f"\n{_NEGATIVE}")
    return Parameters(prompt.strip(), negative.strip(), settings)


def _quoted(value: str) -> str:
    return (
        json.dumps(value, ensure_ascii=False)
        if re.search(r'[,:\n"]', value) or value != value.strip()
        else value
    )


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
