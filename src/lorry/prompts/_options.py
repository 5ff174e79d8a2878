"""What stands between the colons of a tag."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Final

from lorry.errors import PromptError, did_you_mean
from lorry.prompts.tags import LoraTag

_FIELDS: Final = {
    "te": "text_scale",
    "unet": "scale",
    "lbw": "blocks",
    "w": "blocks",
    "start": "start",
    "stop": "stop",
}
_KNOWN: Final = (*_FIELDS, "step", "x")
_REFUSED: Final = {
    "lbwe": "factors by kind of layer are given from Python, with `lorry.Strengths(kinds=…)`",
    "dyn": "lorry does not cut ranks while it draws",
    "hr": "lorry draws in one pass",
    "hrte": "lorry draws in one pass",
}
_ESCAPE: Final = re.compile(r"\\([\\:<>=\"])")
"""A backslash before anything else is itself: it parts folders on Windows."""


def read_tag(inside: str, *, te_first: bool) -> LoraTag:
    """Read what follows `<lora:`.

    Raises:
        PromptError: it has no name, or an option that cannot be read.
    """
    name, *options = [option.strip() for option in _split(inside)]
    name = _plain(name[1:-1] if len(name) > 1 and name[0] == name[-1] == '"' else name)
    if not name:
        raise PromptError("it has no name. Expected `<lora:name:strength>`.")
    fields: dict[str, Any] = {}
    numbers: list[float] = []
    fill = 1.0
    for key, value in map(_keyed, options):
        if key == "x":
            fill = _number(value, key)
        elif key == "" and "," not in value and "@" not in value and _is_number(value):
            numbers.append(_number(value, "the strength"))
        else:
            _put(fields, _read_option(key, value))
    _put_numbers(fields, numbers[::-1] if te_first and len(numbers) == 2 else numbers)
    return _checked(name, fields, fill)


def _split(text: str) -> list[str]:
    """Part at the colons that no backslash precedes."""
    pieces = [""]
    for token in re.findall(r"\\.|[^\\]|\\$", text, re.DOTALL):
        if token == ":":
            pieces.append("")
        else:
            pieces[-1] += token
    return pieces


def _plain(text: str) -> str:
    return _ESCAPE.sub(r"\1", text)


def _keyed(option: str) -> tuple[str, str]:
    """Part `key=value`; the key of a value that stands alone is empty."""
    match = re.match(r"(\w+)\s*=\s*(.*)", option, re.DOTALL)
    return (match[1].lower(), match[2]) if match else ("", option)


def _read_option(key: str, value: str) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a tag that an option says."""
    if key in _REFUSED:
        raise PromptError(f"`{key}=` is not done by lorry: {_REFUSED[key]}.")
    if key == "step":
        start, dash, stop = value.partition("-")
        if not dash:
            raise PromptError(f"`step={value}`: expected two steps, as in `step=5-10`.")
        yield from (("start", _step(start, key)), ("stop", _step(stop, key)))
    elif key in ("start", "stop"):
        yield key, _step(value, key)
    elif key in ("te", "unet") and "@" not in value:
        yield _FIELDS[key], _number(value, key)
    elif key in ("", "unet") and "@" in value:
        yield "points", _points(value)
    elif key in ("", "lbw", "w"):
        yield "blocks", _blocks(value)
    else:
        raise PromptError(
            f"`{key}={value}` is not understood.{did_you_mean(key, _KNOWN)} Known: {', '.join(_KNOWN)}."
        )


def _put(fields: dict[str, Any], found: Iterator[tuple[str, Any]]) -> None:
    for field, value in found:
        if field in fields:
            raise PromptError(f"it says {_said(field)} twice.")
        fields[field] = value


def _said(field: str) -> str:
    names = {
        "blocks": "the blocks' factors",
        "points": "the strength",
        "scale": "the strength",
        "text_scale": "`te=`",
    }
    return names.get(field, f"`{field}=`")


def _put_numbers(fields: dict[str, Any], numbers: list[float]) -> None:
    """Give the strengths without a name to what no named option, and no strength by step, says."""
    if len(numbers) > 2:
        raise PromptError(
            f"it has {len(numbers)} strengths: expected one, or one for the denoiser and one for the text encoders."
        )
    if "points" in fields and ("scale" in fields or len(numbers) > 1):
        raise PromptError("it says the strength twice: by step, and as a number.")
    if numbers and ("points" in fields or "scale" in fields or len(numbers) == 2):
        fields.setdefault("text_scale", numbers[-1])
    if numbers and "points" not in fields:
        fields.setdefault("scale", numbers[0])


def _checked(name: str, fields: dict[str, Any], fill: float) -> LoraTag:
    if isinstance(fields.get("blocks"), list):
        fields["blocks"] = tuple(fill if factor is None else factor for factor in fields["blocks"])
    return LoraTag(name, **fields)


def _points(value: str) -> tuple[tuple[float, float], ...]:
    points = []
    for pair in value.split(","):
        scale, sign, at = pair.partition("@")
        if not sign:
            raise PromptError(f"`{value}`: expected `strength@position` between the commas, got `{pair}`.")
        points.append((_number(at, "a position"), _number(scale, "a strength")))
    if any(at < 0 for at, _ in points):
        raise PromptError(f"`{value}`: a position is at least 0.")
    return tuple(sorted(points, key=lambda point: point[0]))


def _blocks(value: str) -> list[float | None] | str:
    """Read factors (None where a letter stands for `x=`), or a preset's name."""
    if "," not in value:
        if not value:
            raise PromptError("expected something between two colons, or after `lbw=`.")
        return _plain(value)
    factors = [factor.strip() for factor in value.split(",")]
    if any(factor in ("R", "U") for factor in factors):
        raise PromptError(
            "a factor at random (`R`, `U`) would draw another picture each time. Write a number."
        )
    return [None if factor == "X" else _number(factor, "a block's factor") for factor in factors]


def _step(text: str, key: str) -> int | float:
    value = _number(text, key)
    if re.fullmatch(r"\s*\d+\s*", text):
        return int(value)
    if 0 <= value <= 1:
        return value
    raise PromptError(f"`{key}={text}`: expected a step (1, 2, …) or a share of the steps (0.0 to 1.0).")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(text: str, what: str) -> float:
    if not _is_number(text):
        raise PromptError(f"{what}: expected a number, got {text!r}.")
    if not math.isfinite(float(text)):
        raise PromptError(f"{what}: expected a finite number, got {text!r}.")
    return float(text)
