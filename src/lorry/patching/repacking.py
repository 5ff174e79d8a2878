"""Quantize a weight again as it was quantized before, by the library that did it."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor

TORCHAO = ("Float8Tensor", "Int8Tensor", "IntxUnpackedToInt8Tensor")
"""Classes of torchao's that are made by `from_hp`, whose options they keep. The others are packed for one kernel."""


def torchao_can_write(packed: Any) -> bool:
    """Whether `like_torchao` can make a tensor like this one."""
    return type(packed).__name__ in TORCHAO and _granularity(packed) is not None


def like_torchao(packed: Any, plain: Tensor) -> Tensor:
    """Return a tensor of torchao's like `packed` of other numbers.

    Source: torchao 0.18, `from_hp` of the classes named above.
    """
    make, plain = type(packed).from_hp, plain.to(packed.dtype)
    kind = TORCHAO.index(type(packed).__name__)
    if kind == 0:
        return make(
            plain,
            packed.qdata.dtype,
            _granularity(packed),
            mm_config=packed.mm_config,
            act_quant_kwargs=packed.act_quant_kwargs,
            kernel_preference=packed.kernel_preference,
        )
    both = sys.modules["torchao.quantization"].quant_primitives.MappingType
    mapping = both.ASYMMETRIC if _has_zero_point(packed) else both.SYMMETRIC
    if kind == 1:
        return make(
            plain,
            _granularity(packed),
            mapping_type=mapping,
            act_quant_kwargs=packed.act_quant_kwargs,
            act_quant_scale=packed.act_quant_scale,
            act_quant_zero_point=packed.act_quant_zero_point,
            act_pre_scale=packed.act_pre_scale,
            reduce_range=packed.reduce_range,
        )
    return make(
        plain,
        tuple(packed.block_size),
        packed.target_dtype,
        mapping_type=mapping,
        activation_quantization=packed.activation_quantization,
    )


def _has_zero_point(packed: Any) -> bool:
    return packed.zero_point is not None and bool((packed.zero_point != 0).any())


def _granularity(packed: Any) -> Any:
    """What share of a weight has a scale of its own, in torchao's words."""
    block, shape = getattr(packed, "block_size", None), tuple(packed.shape)
    words = sys.modules["torchao.quantization"].granularity
    if block is None or len(shape) != 2:
        return None
    if tuple(block) == shape:
        return words.PerTensor()
    if block[0] != 1:
        return None
    return words.PerRow() if block[1] == shape[1] else words.PerGroup(block[1])


def like_quanto(module: Any, plain: Tensor) -> Tensor:
    """Return what a layer of optimum-quanto's would quantize `plain` to."""
    library = sys.modules["optimum.quanto"]
    kind, group = module.weight_qtype, module.weight_group_size
    if isinstance(module.optimizer, library.SymmetricOptimizer):
        scale, shift = module.optimizer(plain, qtype=kind, axis=0), None
    else:
        scale, shift = module.optimizer(plain, qtype=kind, axis=0, group_size=group)
    return library.quantize_weight(
        plain,
        qtype=kind,
        axis=0,
        scale=scale,
        shift=shift,
        group_size=group,
        activation_qtype=module.activation_qtype,
    )


@functools.cache
def gguf_can_write(kind: Any) -> bool:
    """Whether the package `gguf` quantizes to one of its kinds. To K-quants it does not."""
    library = sys.modules.get("gguf")
    if library is None:
        return False
    try:
        library.quants.quantize(torch.zeros(1, library.GGML_QUANT_SIZES[kind][0], device="cpu").numpy(), kind)
    except NotImplementedError:
        return False
    return True


def like_gguf(packed: Any, plain: Tensor) -> Tensor:
    """Return the bytes of `plain` in the kind of GGUF that `packed` is of."""
    numbers = plain.float().cpu().contiguous().numpy()
    written = sys.modules["gguf"].quants.quantize(numbers, packed.quant_type)
    return torch.from_numpy(written).to(packed.device)
