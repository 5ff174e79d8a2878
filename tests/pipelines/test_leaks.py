"""Two hundred adapters that come and go leave nothing behind: no tensor, no class, no memory."""

from __future__ import annotations

import gc
from typing import Any

import numpy
import psutil
import pytest
import torch

from lorry import LoraLoaderMixin
from models import tiny_unet

CYCLES = 200


class Pipeline(LoraLoaderMixin):
    def __init__(self) -> None:
        self.unet: Any = tiny_unet()
        self.components = {"unet": self.unet}


def adapter(pipeline: Pipeline) -> dict[str, torch.Tensor]:
    """A LoRA of every attention projection."""
    tensors: dict[str, torch.Tensor] = {}
    for path, module in pipeline.unet.named_modules():
        if path.endswith(("to_q", "to_k", "to_v")):
            tensors[f"unet.{path}.lora_A.weight"] = torch.randn(2, module.in_features)
            tensors[f"unet.{path}.lora_B.weight"] = torch.randn(module.out_features, 2)
    return tensors


def tensor_count() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def cycle(pipeline: Pipeline, tensors: dict[str, torch.Tensor], fused: bool) -> None:
    pipeline.load_lora_weights(tensors, adapter_name="one")
    pipeline.set_adapters("one", 0.5)
    if fused:
        pipeline.fuse_lora()
        pipeline.unfuse_lora()
    pipeline.unload_lora_weights()


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
def test_two_hundred_cycles_leave_no_tensor_and_no_memory(fused: bool) -> None:
    pipeline = Pipeline()
    tensors = adapter(pipeline)
    for _ in range(20):
        cycle(pipeline, tensors, fused)
    before, process = tensor_count(), psutil.Process()
    resident = []
    for _ in range(CYCLES):
        cycle(pipeline, tensors, fused)
        resident.append(process.memory_info().rss)
    assert tensor_count() == before
    slope = numpy.polyfit(numpy.arange(CYCLES), resident, 1)[0]
    one = sum(tensor.nbytes for tensor in tensors.values())
    assert slope < one / 10, f"{slope:.0f} bytes a cycle, where an adapter has {one}"
