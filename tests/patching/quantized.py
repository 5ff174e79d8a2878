"""Layers quantized by each library that runs on a CPU, and the weights that they compute with."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

INT4: Any = vars(torch)["int4"]
"""Not in torch's type stubs."""
OUT, IN = 64, 256
"""32 rows are what bitsandbytes packs together on some CPUs; 256 numbers are a block of the K-quants of GGUF."""


def linear(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(IN, OUT).to(dtype)


def needs(*packages: str) -> None:
    """Skip the test where a library is not installed."""
    for package in packages:
        if importlib.util.find_spec(package.partition(".")[0]) is None:
            pytest.skip(f"{package} is not installed")


@contextmanager
def noisy() -> Any:
    """Some of these libraries warn when they are imported; what is tested here never warns by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def bitsandbytes_4(dtype: torch.dtype, kind: str = "nf4") -> nn.Module:
    needs("bitsandbytes")
    with noisy():
        import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(IN, OUT, compute_dtype=dtype, quant_type=kind)
    layer.load_state_dict(linear(dtype).state_dict())
    return layer.to("cpu")


def bitsandbytes_8(dtype: torch.dtype) -> nn.Module:
    needs("bitsandbytes")
    with noisy():
        import bitsandbytes

    layer = bitsandbytes.nn.Linear8bitLt(IN, OUT, has_fp16_weights=False)
    layer.load_state_dict(linear().state_dict())
    layer = layer.to("cpu")
    layer.bias.data = layer.bias.data.to(dtype)
    return layer


def torchao(config: Callable[[Any], Any]) -> Callable[[torch.dtype], nn.Module]:
    def build(dtype: torch.dtype) -> nn.Module:
        needs("torchao")
        with noisy():
            from torchao import quantization

        layer = nn.Sequential(linear(dtype))
        quantization.quantize_(layer, config(quantization))
        return layer[0]

    return build


def unpacked(packed: Tensor, bits: int) -> Tensor:
    """The numbers that quanto has put into bytes: the first rows in the lowest bits."""
    return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])


def without_compiler() -> None:
    """Keep quanto from compiling its own code for that, which takes a compiler and a minute."""
    from optimum.quanto.library.extensions.cpp import ext

    stand_in: Any = SimpleNamespace(unpack=unpacked)
    ext._lib = ext._lib or stand_in


def quanto(weights: str, frozen: bool = True) -> Callable[[torch.dtype], nn.Module]:
    def build(dtype: torch.dtype) -> nn.Module:
        needs("optimum.quanto")
        with noisy():
            from optimum import quanto

            without_compiler()
            layer = nn.Sequential(linear(dtype))
            quanto.quantize(layer, weights=getattr(quanto, weights))
            if frozen:
                quanto.freeze(layer)
        return layer[0]

    return build


SCALES_AT = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where a block of a K-quant has its float16 scales; all other bytes may be anything."""


def gguf_bytes(name: str) -> Tensor:
    """The bytes of a weight in a kind of GGUF: quantized by the `gguf` package, or random K-quant blocks."""
    needs("gguf")
    import gguf

    kind = gguf.GGMLQuantizationType[name]
    if name not in SCALES_AT:
        return torch.from_numpy(gguf.quants.quantize(linear().weight.detach().numpy(), kind))
    _, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = torch.randint(0, 256, (OUT, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for place in SCALES_AT[name]:
        blocks[:, place : place + 2] = torch.tensor([0.002], dtype=torch.float16).view(torch.uint8)
    return blocks


def gguf(name: str) -> Callable[[torch.dtype], nn.Module]:
    def build(dtype: torch.dtype) -> nn.Module:
        data = gguf_bytes(name)
        from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter
        from gguf import GGMLQuantizationType

        parameter: Any = GGUFParameter
        layer = GGUFLinear(IN, OUT, bias=True, compute_dtype=dtype)
        layer.weight = parameter(data, quant_type=GGMLQuantizationType[name])
        layer.bias = linear().bias
        return layer

    return build


def layerwise(dtype: torch.dtype) -> nn.Module:
    from diffusers.hooks import apply_layerwise_casting

    layer = nn.Sequential(linear(dtype))
    apply_layerwise_casting(layer, torch.float8_e4m3fn, compute_dtype=dtype)
    return layer[0]


LAYERS: dict[str, Callable[[torch.dtype], nn.Module]] = {
    "bitsandbytes NF4": bitsandbytes_4,
    "bitsandbytes FP4": lambda dtype: bitsandbytes_4(dtype, "fp4"),
    "bitsandbytes int8": bitsandbytes_8,
    "torchao int8": torchao(lambda q: q.Int8WeightOnlyConfig(version=2)),
    "torchao int4": torchao(lambda q: q.IntxWeightOnlyConfig(INT4)),
    "torchao float8": torchao(lambda q: q.Float8WeightOnlyConfig()),
    "torchao int8 activations": torchao(lambda q: q.Int8DynamicActivationInt8WeightConfig()),
    "quanto int8": quanto("qint8"),
    "quanto int4": quanto("qint4"),
    "quanto float8": quanto("qfloat8"),
    "quanto int8, not frozen": quanto("qint8", frozen=False),
    **{f"GGUF {name}": gguf(name) for name in ("Q8_0", "Q5_1", "Q4_0", *SCALES_AT)},
    "float8 by layerwise casting": layerwise,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

OWN_ARITHMETIC = {"bitsandbytes NF4", "bitsandbytes FP4", "bitsandbytes int8", "torchao int8 activations"}
"""Layers that multiply in eight bits, or in bfloat16 where the processor has it, whatever is asked for."""
