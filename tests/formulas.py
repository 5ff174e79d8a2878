"""What a layer's tensors add to its weight and bias: the formulas of the papers, in float64, from the file's suffixes.

Nothing of lorry is used here: this is what its families are held against where a file is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
MAGNITUDES = ("dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight", "magnitude")
BIASES = ("diff_b", "b_norm", "lora_B.bias", "lora_up.bias")


def changes(
    tensors: Tensors, weight: Tensor, bias: Tensor | None = None, strength: float = 1.0
) -> dict[str, Tensor]:
    """Return what is added to `weight` and `bias`, where a layer has either.

    Args:
        tensors: the layer's, by what their keys end with.
        weight: of the layer, before.
        bias: likewise, where there is one.
        strength: the user's.
    """
    tensors = {suffix: tensor.double() for suffix, tensor in tensors.items()}
    found = {"weight": on_weight(tensors, weight.detach().double(), strength)}
    found["bias"] = _on_bias(tensors, None if bias is None else bias.detach().double(), strength)
    return {name: change for name, change in found.items() if change is not None}


def on_weight(tensors: Tensors, weight: Tensor, strength: float = 1.0) -> Tensor | None:
    """Return what is added to a weight in float64, or None."""
    magnitude = next((name for name in MAGNITUDES if name in tensors), None)
    if magnitude is not None:
        inner = _direction(tensors, weight.shape)
        assert inner is not None
        return strength * (_of_length(magnitude, tensors[magnitude], weight + inner) - weight)
    if "set_weight" in tensors:
        return tensors["set_weight"] - weight
    for name in ("diff", "w_norm"):
        if name in tensors:
            return strength * tensors[name]
    for name, formula in (("on_input", _ia3), ("ia3_l", _peft_ia3), ("a1.weight", _glora), ("hra_u", _hra)):
        if name in tensors:
            return formula(tensors, weight, strength)
    if {"oft_blocks", "oft_R.weight", "boft_R"} & tensors.keys():
        turned = _turned(tensors, weight.flatten(1), strength, weight.ndim > 2)
        return turned.reshape(weight.shape) - weight
    direction = _direction(tensors, weight.shape)
    return None if direction is None else strength * direction


def _direction(tensors: Tensors, shape: torch.Size) -> Tensor | None:
    """LoRA, LoHa or LoKr: what does not depend on the weight."""
    if "lora_up.weight" in tensors:
        return _lora(tensors, shape)
    if "hada_w1_a" in tensors:
        return _loha(tensors, shape)
    return _lokr(tensors, shape) if any(name.startswith("lokr_w1") for name in tensors) else None


def _scale(tensors: Tensors, rank: int) -> float:
    """alpha / rank; 1 without an alpha."""
    if "scale" in tensors:
        return float(tensors["scale"])
    return float(tensors["alpha"]) / rank if "alpha" in tensors else 1.0


def _lora(tensors: Tensors, shape: torch.Size) -> Tensor:
    down, up = tensors["lora_down.weight"], tensors["lora_up.weight"].flatten(1)
    if "lora_mid.weight" in tensors:
        down = torch.einsum("pq...,qi->pi...", tensors["lora_mid.weight"], down.flatten(1))
    whole = torch.einsum("or,rc->oc", up, down.flatten(1))
    if "bias_values" in tensors:
        rows, columns = tensors["bias_indices"].long()
        for value, row, column in zip(tensors["bias_values"], rows, columns, strict=True):
            whole[row, column] += value
    return _scale(tensors, up.shape[1]) * whole.reshape(shape)


def _loha(tensors: Tensors, shape: torch.Size) -> Tensor:
    halves = []
    for number in (1, 2):
        a, b, core = (tensors.get(f"hada_{name}") for name in (f"w{number}_a", f"w{number}_b", f"t{number}"))
        assert a is not None
        assert b is not None
        halves.append(a @ b if core is None else torch.einsum("pq...,po,qi->oi...", core, a, b))
    one, two = (half.reshape(shape) for half in halves)
    return _scale(tensors, tensors["hada_w1_b"].shape[0]) * one * two


def _lokr(tensors: Tensors, shape: torch.Size) -> Tensor:
    one, two = (tensors.get(f"lokr_w{number}") for number in (1, 2))
    rank = None
    if one is None:
        one, rank = tensors["lokr_w1_a"] @ tensors["lokr_w1_b"], tensors["lokr_w1_b"].shape[0]
    if two is None:
        a, b, core = tensors["lokr_w2_a"], tensors["lokr_w2_b"], tensors.get("lokr_t2")
        two, rank = (a @ b if core is None else torch.einsum("pq...,po,qi->oi...", core, a, b)), b.shape[0]
    two = two.reshape(shape[0] // one.shape[0], shape[1] // one.shape[1], *shape[2:])
    scale = 1.0 if rank is None else _scale(tensors, rank)
    return scale * torch.einsum("ac,bd...->abcd...", one, two).reshape(shape)


def _of_length(name: str, magnitude: Tensor, whole: Tensor) -> Tensor:
    """Rows of the lengths that DoRA has for them; or columns, where LyCORIS's magnitude is (1, in)."""
    on_columns = name == "dora_scale" and tuple(magnitude.shape[:2]) == (1, whole.shape[1])
    axes = [axis for axis in range(whole.ndim) if axis != int(on_columns)]
    norm = whole.square().sum(dim=axes, keepdim=True).sqrt()
    return magnitude.reshape(norm.shape) * whole / norm


def _ia3(tensors: Tensors, weight: Tensor, strength: float) -> Tensor:
    axis = int(tensors["on_input"])
    return strength * weight * _along(tensors["weight"], weight, axis)


def _peft_ia3(tensors: Tensors, weight: Tensor, strength: float) -> Tensor:
    """The factor itself, along the rows (out, 1) or the columns (1, in)."""
    factor = tensors["ia3_l"]
    return strength * weight * (_along(factor, weight, int(factor.shape[0] == 1)) - 1)


def _along(vector: Tensor, weight: Tensor, axis: int) -> Tensor:
    return vector.reshape([-1 if place == axis else 1 for place in range(weight.ndim)])


def _glora(tensors: Tensors, weight: Tensor, strength: float) -> Tensor:
    a1, a2, b1, b2 = (tensors[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    if a1.shape[0] < a1.shape[1]:  # the first files' order
        a1, a2, b1, b2 = a2, a1, b2, b1
    if "bm.weight" in tensors:
        b2 = torch.einsum("pq...,qi->pi...", tensors["bm.weight"], b2.flatten(1))
    on_channels = torch.einsum("oi...,ij->oj...", weight, a1.flatten(1) @ a2.flatten(1))
    added = (b1.flatten(1) @ b2.flatten(1)).reshape(weight.shape)
    return strength * _scale(tensors, a2.shape[0]) * (on_channels + added)


def _hra(tensors: Tensors, weight: Tensor, strength: float) -> Tensor:
    turned = weight.flatten(1)
    for column in tensors["hra_u"].unbind(1):
        turned = turned - 2 / column.dot(column) * torch.outer(turned @ column, column)
    return strength * (turned.reshape(weight.shape) - weight)


def _turned(tensors: Tensors, weight: Tensor, strength: float, is_kernel: bool) -> Tensor:
    """OFT and BOFT: the rows turned, or with PEFT's and OneTrainer's tensors the columns; kernels the other way."""
    rows, rescale = weight.shape[0], tensors.get("rescale")
    if "boft_R" in tensors:
        (blocks,), rescale = tensors["boft_R"], tensors["boft_s"]
        turned = _by_blocks(_cayley((blocks.mT - blocks) / 2), weight.mT, strength).mT
    elif "oft_R.weight" in tensors:
        skews = torch.stack([_skew_of_triangle(numbers) for numbers in tensors["oft_R.weight"]])
        if "oft_R.scaled_oft" in tensors:
            skews = skews / (2 * (skews.shape[1] - 1) ** 0.5)
        terms = torch.eye(skews.shape[1]).double() + 2 * skews + 2 * skews @ skews
        terms = terms + 2 * skews @ skews @ skews + skews @ skews @ skews @ skews
        turned = _by_blocks(terms.mT if is_kernel else terms, weight.mT, strength).mT
    else:
        blocks = tensors["oft_blocks"]
        skews = blocks - blocks.mT
        limit = float(tensors["alpha"]) * rows if "alpha" in tensors else 0.0
        if limit:
            skews = skews * min(1.0, limit / float(skews.square().sum()) ** 0.5)
        if skews.ndim == 3:
            turned = _by_blocks(_cayley(skews).mT, weight, strength)
        else:
            turned = weight
            for stage, turns in enumerate(_cayley(skews)):
                turned = _stage(turns, turned, 2**stage * skews.shape[-1] // 2, strength)
    if rescale is not None:
        turned = (1 + strength * (rescale.reshape(-1, 1) - 1)) * turned
    return turned


def _cayley(skews: Tensor) -> Tensor:
    identity = torch.eye(skews.shape[-1]).double()
    return (identity + skews) @ torch.linalg.inv(identity - skews)


def _skew_of_triangle(numbers: Tensor) -> Tensor:
    size = next(n for n in range(1, 999) if n * (n - 1) // 2 == len(numbers))
    upper = torch.zeros(size, size).double()
    upper[tuple(torch.triu_indices(size, size, 1))] = numbers
    return upper - upper.T


def _by_blocks(turns: Tensor, rows: Tensor, strength: float) -> Tensor:
    """Each stretch of rows multiplied by its block, as far as the strength says; one block may be for all."""
    size = turns.shape[-1]
    partly = strength * turns + (1 - strength) * torch.eye(size).double()
    return torch.einsum(
        "kab,kbc->kac", partly.expand(len(rows) // size, -1, -1), rows.unflatten(0, (-1, size))
    ).flatten(0, 1)


def _stage(turns: Tensor, rows: Tensor, distance: int, strength: float) -> Tensor:
    """A stage of a butterfly: rows that lie `distance` apart are neighbours in a block."""
    near = rows.unflatten(0, (-1, 2, distance)).transpose(1, 2)
    turned = _by_blocks(turns, near.flatten(0, 2), strength)
    return turned.reshape(near.shape).transpose(1, 2).flatten(0, 2)


def _on_bias(tensors: Tensors, bias: Tensor | None, strength: float) -> Tensor | None:
    if "ia3_l" in tensors and tensors["ia3_l"].shape[0] > 1:
        return None if bias is None else strength * bias * (tensors["ia3_l"].flatten() - 1)
    name = next((name for name in BIASES if name in tensors), None)
    if name is None:
        return None
    scale = _scale(tensors, tensors["lora_up.weight"].shape[1]) if name.startswith("lora") else 1.0
    return strength * scale * tensors[name]
