"""A frozen base that holds its weights in fewer bits: LoRA is trained beside it, through the side path.

Gradients go through the layers' own arithmetic, so that what is trained is trained for the weights as they are held.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lorry.training.extras import needed
from lorry.training.settings import Quantization


def quantize(model: Any, kind: Quantization, dtype: torch.dtype) -> None:
    """Hold the weights of linear layers in bitsandbytes' bits, from when the model is next moved to its device on.

    Args:
        model: of diffusers, on the CPU.
        kind: `4bit` is NF4.
        dtype: what it computes in.

    Raises:
        MissingPackageError: bitsandbytes is not installed.
    """
    if kind == "none":
        return
    package = needed("bitsandbytes", f"A base in {kind}")
    exact = tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
    for path, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and not any(name in path.split(".") for name in exact):
            packed = _four_bits(package, layer, dtype) if kind == "4bit" else _eight_bits(package, layer)
            model.set_submodule(path, packed.requires_grad_(False).train(layer.training))


def _four_bits(package: Any, layer: nn.Linear, dtype: torch.dtype) -> nn.Module:
    packed = package.nn.Linear4bit(
        layer.in_features, layer.out_features, compute_dtype=dtype, quant_type="nf4", device="meta"
    )
    packed.weight = package.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    packed.bias = layer.bias
    # Drawing a sample would pack the weights anew, and no gradient knows those.
    packed.support_avx512bf16_for_cpu = False
    return packed


def _eight_bits(package: Any, layer: nn.Linear) -> nn.Module:
    packed = package.nn.Linear8bitLt(
        layer.in_features, layer.out_features, has_fp16_weights=False, device="meta"
    )
    packed.weight = package.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    packed.bias = layer.bias
    return packed
