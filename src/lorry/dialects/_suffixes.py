"""Parameter suffixes: what the last parts of a key say about its tensor. The third of a key's three layers."""

from __future__ import annotations

from typing import Literal, NamedTuple

Role = Literal["down", "up", "mid", "alpha"]

ROLES: dict[str, Role] = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_A": "down",  # genmo's Mochi trainer leaves `.weight` out
    "lora_B": "up",
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "lora_down": "down",
    "lora_up": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora.down": "down",
    "lora.up": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "alpha": "alpha",
}
"""The suffixes of LoRA and LoCon. Source: `shared/FORMATS.md` of the project's workplace, section 3."""

FAMILIES: dict[str, str] = {
    **dict.fromkeys(
        ("dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight", "magnitude"), "DoRA"
    ),
    **dict.fromkeys((f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")), "LoHa"),
    **dict.fromkeys(("lokr_w1", "lokr_w2", "lokr_t2"), "LoKr"),
    **dict.fromkeys((f"lokr_w{i}_{side}" for i in "12" for side in "ab"), "LoKr"),
    **dict.fromkeys(("on_input", "ia3_l"), "(IA)^3"),
    **dict.fromkeys(
        ("oft_blocks", "oft_R.weight", "oft_R", "oft_r", "oft_R.scaled_oft", "rescale"), "OFT or BOFT"
    ),
    **dict.fromkeys(("boft_R", "boft_s"), "BOFT"),
    **dict.fromkeys((f"{part}.weight" for part in ("a1", "a2", "b1", "b2", "bm")), "GLoRA"),
    **dict.fromkeys(("diff", "diff_b"), "full difference"),
    **dict.fromkeys(("w_norm", "b_norm"), "norm difference"),
    **dict.fromkeys(("lora_A.bias", "lora_B.bias", "lora_up.bias", "lora_down.bias"), "LoRA with bias"),
    **dict.fromkeys(("bias_indices", "bias_values", "bias_size"), "LyCORIS sparse difference"),
    **dict.fromkeys(("set_weight", "reshape_weight"), "replacement weights"),
    **dict.fromkeys(("query_norm.scale", "key_norm.scale"), "replacement norms (Flux control LoRA)"),
    **dict.fromkeys(("q_layer.weight", "p_layer.weight", "lambda_layer"), "T-LoRA"),
    **dict.fromkeys(("vera_lambda_b", "vera_lambda_d", "vera_A", "vera_B"), "VeRA"),
    **dict.fromkeys(("lora_E", "ranknum"), "AdaLoRA"),
    **dict.fromkeys(("lora_embedding_A", "lora_embedding_B"), "LoRA of an embedding"),
    "hra_u": "HRA",
}
"""The suffixes of families that are recognised and not applied yet."""

_LONGEST = 3


class Ending(NamedTuple):
    """A key cut before its parameter suffix."""

    stem: str
    suffix: str
    adapter: str | None
    """The name that PEFT puts into the keys of a live model's dump (`lora_A.default.weight`)."""


def split_suffix(key: str) -> Ending | None:
    """Return a key's parts before and after the border of module path and suffix, or None where no suffix is known."""
    parts = key.split(".")
    for length in range(min(_LONGEST, len(parts) - 1), 0, -1):
        suffix = ".".join(parts[-length:])
        if suffix in ROLES or suffix in FAMILIES:
            return Ending(".".join(parts[:-length]), suffix, None)
    return _named_adapter(parts)


def _named_adapter(parts: list[str]) -> Ending | None:
    for tail in ([*parts[-1:]] if parts[-1] == "weight" else [], []):
        at = len(parts) - len(tail) - 1
        if at < 2:
            continue
        suffix = ".".join([parts[at - 1], *tail])
        if parts[at - 1].startswith(("lora_", "oft_", "boft_", "hada_", "lokr_", "ia3_")) and (
            suffix in ROLES or suffix in FAMILIES
        ):
            return Ending(".".join(parts[: at - 1]), suffix, parts[at])
    return None
