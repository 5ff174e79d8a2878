"""Take a delta apart as PEFT does, whose config says what LyCORIS says by tensors."""

from __future__ import annotations

from collections.abc import Mapping

from lorry.algebra import Delta, DoraDelta, LoraDelta, OftDelta, PartsDelta, ReplaceDelta
from lorry.dialects._apart import Roles, take_apart
from lorry.dialects._suffixes import Role

LORA_SUFFIXES: Mapping[Role, str] = {
    "down": "lora_A.weight",
    "up": "lora_B.weight",
    "magnitude": "lora_magnitude_vector",
    "lora_bias": "lora_B.bias",
}
"""The suffixes of PEFT's LoRA, which diffusers reads as well. Source: huggingface/peft, `tuners/lora/layer.py`."""

PEFT_SUFFIXES: Mapping[Role, str] = {
    **LORA_SUFFIXES,
    **{f"hada_{name}": f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{name}": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    "oft_R": "oft_R.weight",
    "boft_R": "boft_R",
    "boft_s": "boft_s",
    "ia3_l": "ia3_l",
    "hra_u": "hra_u",
    "vera_lambda_b": "vera_lambda_b",
    "vera_lambda_d": "vera_lambda_d",
    "embedding_A": "lora_embedding_A",
    "embedding_B": "lora_embedding_B",
    "saved_weight": "weight",
    "saved_bias": "bias",
    "saved_bias_of_base": "base_layer.bias",
}
"""The suffixes of PEFT's types. Source: huggingface/peft, `tuners/*/layer.py`, `adapter_layer_names`."""


def take_apart_for_peft(delta: Delta) -> Roles:
    """Return the tensors of one layer by role; alphas and scales are left to the config."""
    roles = take_apart(delta)
    roles.pop("alpha", None)
    if "lokr_w1" in roles and "lokr_w2" in roles:
        roles.pop("full_scale", None)
    on_weight = delta.on_weight if isinstance(delta, PartsDelta) else delta
    if isinstance(on_weight, OftDelta) and on_weight.on_input:
        for role in ("oft_R", "oft_R_of_a_config", "oft_R_of_any_layer"):
            roles.pop(role, None)
        roles["oft_R_of_any_layer" if on_weight.back_on_kernels else "oft_R"] = on_weight.blocks
    if "saved_bias" in roles and isinstance(delta, PartsDelta) and not is_saved(delta):
        roles["saved_bias_of_base"] = roles.pop("saved_bias")
    inner = on_weight.inner if isinstance(on_weight, DoraDelta) else on_weight
    if isinstance(inner, LoraDelta) and inner.of_embedding:
        roles |= {"embedding_A": roles.pop("up").t(), "embedding_B": roles.pop("down").t()}
    return _with_bias_of_peft(delta, _with_magnitude_of_peft(delta, roles))


def is_saved(delta: Delta) -> bool:
    """Whether a delta is what PEFT saves as a whole: a module of `modules_to_save`, or a bias that is trained along."""
    parts = (delta.on_weight, delta.on_bias) if isinstance(delta, PartsDelta) else (delta,)
    return all(isinstance(part, ReplaceDelta) for part in parts if part is not None)


def _with_magnitude_of_peft(delta: Delta, roles: Roles) -> Roles:
    """PEFT's magnitude is of the rows of a LoRA: (out), or (1, out, 1, 1) for a convolution."""
    inner = delta.on_weight if isinstance(delta, PartsDelta) else delta
    if not isinstance(inner, DoraDelta) or inner.on_input or not isinstance(inner.inner, LoraDelta):
        return roles
    if inner.inner.of_embedding:
        return roles
    ones = [1] * (len(inner.shape) - 2)
    magnitude = roles.pop("dora_scale")
    return {**roles, "magnitude": magnitude.reshape((1, -1, *ones) if ones else (-1,))}


def _with_bias_of_peft(delta: Delta, roles: Roles) -> Roles:
    """PEFT's bias has the scale of its LoRA."""
    if not isinstance(delta, PartsDelta) or "down" not in roles:
        return roles
    bias = roles.pop("lora_bias", None)
    bias = roles.pop("diff_b", None) if bias is None else bias
    same_scale = bias is not None and delta.on_bias.rank_scale == delta.rank_scale
    return roles if bias is None else {**roles, "lora_bias" if same_scale else "diff_b": bias}
