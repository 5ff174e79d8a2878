"""A frozen base that holds its weights in fewer bits: LoRA is trained beside it, through the side path.

Gradients go through the layers' own arithmetic, so that what is trained is trained for the weights as they are held.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn

from lorry.training.extras import needed
from lorry.training.settings import Quantization

_PACKAGES: Final[Mapping[Quantization, tuple[str, str | None]]] = {
    "4bit": ("bitsandbytes", None),
    "8bit": ("bitsandbytes", None),
    "torchao-int8": ("torchao.quantization", "torchao"),
    "quanto-int8": ("optimum.quanto", "optimum-quanto"),
}
"""The module that each kind is made by, and the package that has it where it is none of the extra `train`."""


def get_package(kind: Quantization) -> Any:
    """Return the module that a kind is made by; None for `none`.

    Raises:
        MissingPackageError: it is not installed.
    """
    if kind == "none":
        return None
    module, package = _PACKAGES[kind]
    return needed(module, f"A base in {kind}", package)


def quantize(model: Any, kind: Quantization, dtype: torch.dtype) -> None:
    """Hold the weights of linear layers in fewer bits; bitsandbytes does from when the model is next moved.

    Args:
        model: of diffusers, on the CPU.
        kind: `4bit` is NF4.
        dtype: what it computes in.

    Raises:
        MissingPackageError: the package that does it is not installed.
    """
    package = get_package(kind)
    if package is None:
        return
    exact = tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
    for path, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and not any(name in path.split(".") for name in exact):
            packed = _packed(package, layer, kind, dtype)
            model.set_submodule(path, packed.requires_grad_(False).train(layer.training))


def _packed(package: Any, layer: nn.Linear, kind: Quantization, dtype: torch.dtype) -> nn.Module:
    match kind:
        case "4bit":
            return _four_bits(package, layer, dtype)
        case "8bit":
            return _eight_bits(package, layer)
        case "torchao-int8":
            package.quantize_(nn.Sequential(layer), package.Int8WeightOnlyConfig(version=2))
            return layer
        case "quanto-int8":
            packed = package.QLinear.from_module(layer, weights=package.qint8)
            packed.freeze()
            return packed
        case "none":
            return layer


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
