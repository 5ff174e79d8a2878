"""One layer of each family: the tensors by their suffixes, and the delta that they mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lorry.algebra import (
    BoftDelta,
    Delta,
    DoraDelta,
    FullDelta,
    GloraDelta,
    HraDelta,
    Ia3Delta,
    LohaDelta,
    LokrDelta,
    LoraDelta,
    OftDelta,
    PartsDelta,
    ReplaceDelta,
    SparseDelta,
)

LINEAR, CONV = (8, 6), (8, 6, 3, 3)
ALPHA = 1.5


class Layer(NamedTuple):
    tensors: Mapping[str, Tensor]
    """By suffix."""
    delta: Delta
    shape: tuple[int, ...]
    """Of the base weight."""


def rand(*shape: int) -> Tensor:
    return torch.randn(shape) / 2


def alpha(value: float = ALPHA) -> dict[str, Tensor]:
    return {"alpha": torch.tensor(value)}


def lora_parts(shape: tuple[int, ...], rank: int = 2) -> tuple[dict[str, Tensor], LoraDelta]:
    down, up = rand(rank, *shape[1:]), rand(shape[0], rank, *(1 for _ in shape[2:]))
    tensors = {"lora_down.weight": down, "lora_up.weight": up, **alpha()}
    return tensors, LoraDelta(down, up, None, ALPHA)


def loha_parts(shape: tuple[int, ...]) -> tuple[dict[str, Tensor], LohaDelta]:
    count = torch.Size(shape[1:]).numel()
    factors = rand(shape[0], 3), rand(3, count), rand(shape[0], 3), rand(3, count)
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    return {**dict(zip(names, factors, strict=True)), **alpha()}, LohaDelta(*factors, alpha=ALPHA)


def lokr_parts() -> tuple[dict[str, Tensor], LokrDelta]:
    one, a, b = rand(2, 3), rand(4, 2), rand(2, 2)
    tensors = {"lokr_w1": one, "lokr_w2_a": a, "lokr_w2_b": b, **alpha()}
    return tensors, LokrDelta(w1=one, w2_a=a, w2_b=b, alpha=ALPHA)


def lora(shape: tuple[int, ...]) -> Layer:
    return Layer(*lora_parts(shape), shape)


def at_scale_1(shape: tuple[int, ...]) -> Layer:
    tensors, delta = lora_parts(shape)
    return Layer(
        {suffix: tensor for suffix, tensor in tensors.items() if suffix != "alpha"},
        LoraDelta(delta.down, delta.up),
        shape,
    )


def locon_tucker() -> Layer:
    down, core, up = rand(3, 6, 1, 1), rand(2, 3, 3, 3), rand(8, 2, 1, 1)
    tensors = {"lora_down.weight": down, "lora_mid.weight": core, "lora_up.weight": up, **alpha()}
    return Layer(tensors, LoraDelta(down, up, core, ALPHA), CONV)


def lora_with_a_scale() -> Layer:
    tensors, delta = lora_parts(LINEAR)
    scaled = LoraDelta(delta.down, delta.up, None, 0.25 * 2)
    return Layer({**tensors, "scale": torch.tensor(0.25)}, scaled, LINEAR)


def with_diff_b(layer: Layer) -> Layer:
    bias = rand(layer.shape[0])
    return Layer({**layer.tensors, "diff_b": bias}, PartsDelta(layer.delta, FullDelta(bias)), layer.shape)


def lora_with_bias(suffix: str) -> Layer:
    tensors, delta = lora_parts(LINEAR)
    bias = rand(8)
    return Layer({**tensors, suffix: bias}, PartsDelta(delta, FullDelta(bias, ALPHA / 2)), LINEAR)


def dora(inner: Layer, suffix: str, on_input: bool, *axes: int) -> Layer:
    magnitude = rand(*axes).abs() + 1
    delta = DoraDelta(inner.delta, magnitude, on_input)
    return Layer({**inner.tensors, suffix: magnitude}, delta, inner.shape)


def lora_with_sparse() -> Layer:
    """As LyCORIS extracts it: everything in half precision and 16 bits, a kernel's columns counted together."""
    tensors, delta = lora_parts(CONV)
    values, indices = rand(3), torch.tensor([[0, 5, 7], [1, 0, 53]], dtype=torch.int16)
    size = torch.tensor([8, 54], dtype=torch.int16)
    more = {"bias_indices": indices, "bias_values": values, "bias_size": size}
    return Layer({**tensors, **more}, SparseDelta(delta, values, indices.long()), CONV)


def replacement() -> Layer:
    value = rand(*LINEAR)
    return Layer({"set_weight": value}, ReplaceDelta(value), LINEAR)


def hra() -> Layer:
    u = rand(6, 2)
    return Layer({"hra_u": u}, HraDelta(u), LINEAR)


def loha(shape: tuple[int, ...]) -> Layer:
    return Layer(*loha_parts(shape), shape)


def loha_tucker() -> Layer:
    factors = rand(2, 8), rand(2, 6), rand(2, 8), rand(2, 6), rand(2, 2, 3, 3), rand(2, 2, 3, 3)
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
    tensors = {**dict(zip(names, factors, strict=True)), **alpha()}
    return Layer(tensors, LohaDelta(*factors, alpha=ALPHA), CONV)


def lokr(shape: tuple[int, ...], **parts: tuple[int, ...]) -> Layer:
    tensors = {name: rand(*axes) for name, axes in parts.items()}
    named = {f"lokr_{name}": tensor for name, tensor in tensors.items()}
    return Layer({**named, **alpha()}, LokrDelta(**tensors, alpha=ALPHA), shape)  # pyright: ignore[reportArgumentType]


def glora(shape: tuple[int, ...], old: bool) -> Layer:
    out, inside, *kernel = shape
    ones = [1 for _ in kernel]
    left, right = rand(inside, 2, *ones), rand(2, inside, *ones)
    up, down = rand(out, 2, *ones), rand(2, inside, *kernel)
    factors = (right, left, down, up) if old else (left, right, up, down)
    names = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
    delta = GloraDelta(*factors, alpha=ALPHA, old_layout=old)
    return Layer({**dict(zip(names, factors, strict=True)), **alpha()}, delta, shape)


def glora_tucker() -> Layer:
    left, right, up, down, core = (
        rand(6, 2, 1, 1),
        rand(2, 6, 1, 1),
        rand(8, 2, 1, 1),
        rand(2, 6, 1, 1),
        rand(2, 2, 3, 3),
    )
    tensors = {"a1.weight": left, "a2.weight": right, "b1.weight": up, "b2.weight": down, "bm.weight": core}
    joined = torch.einsum("pqxy,qi->pixy", core, down.flatten(1))
    return Layer({**tensors, **alpha()}, GloraDelta(left, right, up, joined, alpha=ALPHA), CONV)


def oft(constraint: float | None, rescale: bool, shape: tuple[int, ...] = LINEAR) -> Layer:
    blocks, more = rand(2, 4, 4), {"rescale": rand(8, *(1 for _ in shape[1:]))} if rescale else {}
    limit = {} if constraint is None else alpha(constraint)
    delta = OftDelta(blocks, more.get("rescale"), constraint or None)
    return Layer({"oft_blocks": blocks, **more, **limit}, delta, shape)


def boft(constraint: float | None, rescale: bool, shape: tuple[int, ...] = LINEAR) -> Layer:
    blocks, more = rand(2, 4, 2, 2), {"rescale": rand(8, *(1 for _ in shape[1:]))} if rescale else {}
    limit = {} if constraint is None else alpha(constraint)
    delta = BoftDelta(blocks, more.get("rescale"), constraint or None)
    return Layer({"oft_blocks": blocks, **more, **limit}, delta, shape)


def packed_oft(count: int, scaled: bool, shape: tuple[int, ...] = LINEAR) -> Layer:
    blocks, more = rand(count, 3), {"oft_R.scaled_oft": torch.tensor(True)} if scaled else {}
    delta = OftDelta(blocks, on_input=True, neumann_terms=5, scaled=scaled, back_on_kernels=True)
    return Layer({"oft_R.weight": blocks, **more}, delta, shape)


def peft_boft() -> Layer:
    blocks, scale = rand(1, 3, 2, 2), rand(8, 1)
    return Layer({"boft_R": blocks, "boft_s": scale}, BoftDelta(blocks, scale, on_input=True), LINEAR)


def ia3(shape: tuple[int, ...], on_input: bool, *axes: int) -> Layer:
    vector = rand(*axes)
    tensors = {"weight": vector, "on_input": torch.tensor(on_input)}
    return Layer(tensors, Ia3Delta(vector, on_input), shape)


def peft_ia3(on_input: bool) -> Layer:
    vector = rand(1, 6) if on_input else rand(8, 1)
    delta = Ia3Delta(vector, on_input, 1.0)
    if on_input:
        return Layer({"ia3_l": vector}, delta, LINEAR)
    return Layer({"ia3_l": vector}, PartsDelta(delta, Ia3Delta(vector, False, 1.0, (8,))), LINEAR)


def full(shape: tuple[int, ...]) -> Layer:
    diff = rand(*shape)
    return Layer({"diff": diff}, FullDelta(diff), shape)


def bias_only(suffix: str) -> Layer:
    bias = rand(8)
    return Layer({suffix: bias}, PartsDelta(None, FullDelta(bias)), (8,))


def norm(bias: bool) -> Layer:
    weight, shift = rand(8), rand(8)
    if not bias:
        return Layer({"w_norm": weight}, FullDelta(weight), (8,))
    return Layer({"w_norm": weight, "b_norm": shift}, PartsDelta(FullDelta(weight), FullDelta(shift)), (8,))


LAYERS: dict[str, Callable[[], Layer]] = {
    "lora": lambda: lora(LINEAR),
    "locon": lambda: lora(CONV),
    "locon tucker": locon_tucker,
    "lora at scale 1": lambda: at_scale_1(LINEAR),
    "locon at scale 1": lambda: at_scale_1(CONV),
    "lora a1111 scale": lora_with_a_scale,
    "lora diff_b": lambda: with_diff_b(lora(LINEAR)),
    "replacement": replacement,
    "lora with a sparse difference": lora_with_sparse,
    "lora bias": lambda: lora_with_bias("lora_B.bias"),
    "lora bias, up": lambda: lora_with_bias("lora_up.bias"),
    "dora rows": lambda: dora(lora(LINEAR), "dora_scale", False, 8, 1),
    "dora columns": lambda: dora(lora(LINEAR), "dora_scale", True, 1, 6),
    "dora rows of a convolution": lambda: dora(lora(CONV), "dora_scale", False, 8, 1, 1, 1),
    "dora columns of a convolution": lambda: dora(lora(CONV), "dora_scale", True, 1, 6, 1, 1),
    "dora of peft": lambda: dora(lora(LINEAR), "lora_magnitude_vector", False, 8),
    "dora of older peft": lambda: dora(lora(LINEAR), "lora_magnitude_vector.weight", False, 8),
    "dora of peft's convolution": lambda: dora(lora(CONV), "lora_magnitude_vector", False, 1, 8, 1, 1),
    "dora of ai-toolkit": lambda: dora(lora(LINEAR), "magnitude", False, 8),
    "dora of loha": lambda: dora(loha(LINEAR), "dora_scale", False, 8, 1),
    "dora of lokr": lambda: dora(Layer(*lokr_parts(), LINEAR), "dora_scale", True, 1, 6),
    "dora columns of loha": lambda: dora(loha(LINEAR), "dora_scale", True, 1, 6),
    "dora rows of lokr": lambda: dora(Layer(*lokr_parts(), LINEAR), "dora_scale", False, 8, 1),
    "dora of loha's convolution": lambda: dora(loha(CONV), "dora_scale", True, 1, 6, 1, 1),
    "dora of locon tucker": lambda: dora(locon_tucker(), "dora_scale", False, 8, 1, 1, 1),
    "dora with diff_b": lambda: with_diff_b(dora(lora(LINEAR), "dora_scale", False, 8, 1)),
    "dora of one row": lambda: dora(lora((1, 6)), "dora_scale", False, 1, 1),
    "loha": lambda: loha(LINEAR),
    "loha of a convolution": lambda: loha(CONV),
    "loha tucker": loha_tucker,
    "loha diff_b": lambda: with_diff_b(loha(LINEAR)),
    "lokr whole": lambda: lokr(LINEAR, w1=(2, 3), w2=(4, 2)),
    "lokr whole convolution": lambda: lokr(CONV, w1=(2, 3), w2=(4, 2, 3, 3)),
    "lokr w2 of factors": lambda: lokr(LINEAR, w1=(2, 3), w2_a=(4, 2), w2_b=(2, 2)),
    "lokr w1 of factors": lambda: lokr(LINEAR, w1_a=(2, 1), w1_b=(1, 3), w2=(4, 2)),
    "lokr both of factors": lambda: lokr(LINEAR, w1_a=(2, 1), w1_b=(1, 3), w2_a=(4, 2), w2_b=(2, 2)),
    "lokr of a convolution": lambda: lokr(CONV, w1=(2, 3), w2_a=(4, 2), w2_b=(2, 18)),
    "lokr tucker": lambda: lokr(CONV, w1=(2, 3), w2_a=(2, 4), w2_b=(2, 2), t2=(2, 2, 3, 3)),
    "lokr diff_b": lambda: with_diff_b(lokr(LINEAR, w1=(2, 3), w2=(4, 2))),
    "glora": lambda: glora(LINEAR, False),
    "glora old": lambda: glora(LINEAR, True),
    "glora of a convolution": lambda: glora(CONV, False),
    "glora tucker": glora_tucker,
    "oft": lambda: oft(None, False),
    "oft alpha 0": lambda: oft(0.0, False),
    "oft constraint": lambda: oft(0.01, False),
    "oft rescale": lambda: oft(0.01, True),
    "oft of a convolution": lambda: oft(0.01, True, CONV),
    "oft packed": lambda: packed_oft(2, False),
    "oft packed and shared": lambda: packed_oft(1, False),
    "oft packed and scaled": lambda: packed_oft(2, True),
    "oft packed of a convolution": lambda: packed_oft(18, False, CONV),
    "boft": lambda: boft(None, False),
    "boft alpha 0": lambda: boft(0.0, False),
    "boft constraint and rescale": lambda: boft(0.01, True),
    "boft of a convolution": lambda: boft(0.01, True, CONV),
    "boft of peft": peft_boft,
    "hra": hra,
    "ia3 rows": lambda: ia3(LINEAR, False, 8),
    "ia3 columns": lambda: ia3(LINEAR, True, 6),
    "ia3 rows of a convolution": lambda: ia3(CONV, False, 1, 8, 1, 1),
    "ia3 of peft, rows": lambda: peft_ia3(False),
    "ia3 of peft, columns": lambda: peft_ia3(True),
    "full": lambda: full(LINEAR),
    "full of a convolution": lambda: full(CONV),
    "full of a scale": lambda: full((8,)),
    "full diff_b": lambda: with_diff_b(full(LINEAR)),
    "a bias alone": lambda: bias_only("diff_b"),
    "norm": lambda: norm(True),
    "norm without a bias": lambda: norm(False),
    "norm of a bias alone": lambda: bias_only("b_norm"),
}
