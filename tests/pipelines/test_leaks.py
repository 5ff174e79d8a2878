"""Two hundred adapters that come and go leave nothing behind: no tensor, no class, no memory."""

from __future__ import annotations

import gc

import numpy
import psutil
import pytest
import torch

from pipelines.unet_alone import UnetAlone, attention_loras

CYCLES = 200


def tensor_count() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def cycle(pipeline: UnetAlone, tensors: dict[str, torch.Tensor], fused: bool) -> None:
    pipeline.load_lora_weights(tensors, adapter_name="one")
    pipeline.set_adapters("one", 0.5)
    if fused:
        pipeline.fuse_lora()
        pipeline.unfuse_lora()
    pipeline.unload_lora_weights()


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
def test_two_hundred_cycles_leave_no_tensor_and_no_memory(fused: bool) -> None:
    pipeline = UnetAlone()
    tensors = attention_loras(pipeline)
    for _ in range(20):
        cycle(pipeline, tensors, fused)
    before, process = tensor_count(), psutil.Process()
    resident = []
    for _ in range(CYCLES):
        cycle(pipeline, tensors, fused)
        resident.append(process.memory_info().rss)
    # Threads of earlier tests may make a few meanwhile; one left behind at each cycle would be as many as cycles.
    assert tensor_count() - before < CYCLES
    slope = numpy.polyfit(numpy.arange(CYCLES), resident, 1)[0]
    one = sum(tensor.nbytes for tensor in tensors.values())
    assert slope < one / 10, f"{slope:.0f} bytes a cycle, where an adapter has {one}"
