"""Parameter suffixes: what the last parts of a key say about its tensor. The third of a key's three layers."""

from __future__ import annotations

from typing import NamedTuple

Role = str
"""What a tensor is in its layer, by one name for all spellings: most often the suffix that LyCORIS or PEFT writes."""

LORA: dict[str, Role] = {
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
    "lora_alpha": "alpha",  # FastVideo
    "scale": "scale",  # what A1111 takes instead of alpha / rank
}
"""The suffixes of LoRA and LoCon."""

OTHERS: dict[str, Role] = {
    "dora_scale": "dora_scale",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",  # PEFT before 0.12
    "magnitude": "magnitude",  # ai-toolkit
    "lora_B.bias": "lora_bias",
    "lora_up.bias": "lora_bias",
    **{name: name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    **{f"lokr_{name}": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    **{f"{name}.weight": name for name in ("a1", "a2", "b1", "b2", "bm")},
    "on_input": "on_input",
    "ia3_l": "ia3_l",
    "oft_blocks": "oft_blocks",
    "rescale": "rescale",
    "oft_R.weight": "oft_R",
    "oft_R.scaled_oft": "scaled_oft",
    "boft_R": "boft_R",
    "boft_s": "boft_s",
    **{name: name for name in ("diff", "diff_b", "w_norm", "b_norm")},
    "diff_param": "diff",  # FastVideo's, of a parameter that is no layer's
    **{name: name for name in ("bias_indices", "bias_values", "bias_size")},
    **{name: name for name in ("vera_lambda_b", "vera_lambda_d", "vera_A", "vera_B")},
    "hra_u": "hra_u",
    "lora_embedding_A": "embedding_A",  # PEFT's, of an `nn.Embedding`: (rank, tokens) and (width, rank)
    "lora_embedding_B": "embedding_B",
    "lora_a": "mlx_a",  # MLX's, transposed: (in, rank) and (rank, out)
    "lora_b": "mlx_b",
    "lora_a.weight": "down",  # of layers of torch by the same names
    "lora_b.weight": "up",
    "base_layer.weight": "base_weight",  # PEFT saves the embedding that it tunes along with that
    # Whole tensors, in place of the base's: PEFT's of `bias="all"` and `modules_to_save`, and ComfyUI's.
    "base_layer.bias": "saved_bias",
    "modules_to_save.weight": "saved_weight",
    "modules_to_save.bias": "saved_bias",
    "set_weight": "saved_weight",
    "set_param": "saved_weight",
    "reshape_weight": "reshape",  # the shape that the base weight is grown to, which the factors tell as well
}
"""The suffixes of the other families. `weight` alone is LyCORIS's (IA)^3 where `on_input` stands beside it."""

ROLES: dict[str, Role] = {**LORA, **OTHERS}
"""All suffixes that are read.

Source: lycoris-lora 4.1.3, `lycoris/modules`; peft 0.21.2, `tuners`; kohya-ss/sd-scripts, `networks`;
Comfy-Org/ComfyUI, `comfy/lora.py`.
"""

REFUSED: dict[str, str] = {
    **dict.fromkeys(("oft_R", "oft_r"), "OFT of a PEFT before 0.16"),
    **dict.fromkeys(("lora_A.bias", "lora_down.bias"), "LoRA with a bias between its factors"),
    **dict.fromkeys(("q_layer.weight", "p_layer.weight", "lambda_layer"), "T-LoRA"),
    **dict.fromkeys(("lora_E", "ranknum"), "AdaLoRA"),
    **dict.fromkeys(
        [
            f"lora_{side}.{name}"
            for side in ("down", "up", "A", "B")
            for name in ("scale_weight", "weight_scale")
        ],
        "LoRA in fp8 with scales of its own (ComfyUI's `scaled_fp8`)",
    ),
    **dict.fromkeys(
        [f"lora_time_{part}.{kind}" for part in ("gamma", "beta") for kind in ("weight", "bias")],
        "LoRA that changes with the time step (DiffSynth-Studio's Timestep LoRA)",
    ),
}
"""The suffixes of families that are recognised and not applied."""

SHARED = frozenset({"vera_A", "vera_B"})
"""The roles of tensors that stand once in a file, for all of its layers."""
KNOWN = ROLES.keys() | REFUSED.keys()
_FIRST_WORDS = ("lora_", "oft_", "boft_", "hada_", "lokr_", "ia3_", "vera_", "hra_", "modules_to_save")
"""How the suffixes begin into which PEFT puts an adapter's name."""


class Ending(NamedTuple):
    """A key cut before its parameter suffix."""

    stem: str
    suffix: str
    adapter: str | None
    """The name that PEFT puts into the keys of a live model's dump (`lora_A.default.weight`)."""


def split_suffix(key: str) -> Ending | None:
    """Return a key's parts before and after the border of module path and suffix, or None where no suffix is known.

    The longest suffix that is known counts; none has more than three parts.
    """
    last = key.rfind(".")
    middle = key.rfind(".", 0, max(last, 0))
    for at in (key.rfind(".", 0, max(middle, 0)), middle, last):
        if at > 0 and key[at + 1 :] in KNOWN:
            return Ending(key[:at], key[at + 1 :], None)
    return _named_adapter(key.split("."))


def _named_adapter(parts: list[str]) -> Ending | None:
    for tail in ([*parts[-1:]] if parts[-1] in ("weight", "bias") else [], []):
        at = len(parts) - len(tail) - 1
        if at < 2:
            continue
        suffix = ".".join([parts[at - 1], *tail])
        if suffix in KNOWN and suffix.startswith(_FIRST_WORDS):
            return Ending(".".join(parts[: at - 1]), suffix, parts[at])
    return None
