"""Two hundred adapters that come and go leave nothing behind: no tensor, no class, no memory."""

from __future__ import annotations

import gc

import numpy
import psutil
import pytest
import torch

from pipelines.unet_alone import UnetAlone, attention_loras

CYCLES = 200
ROUNDS = 4


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
    before = tensor_count()
    one = sum(tensor.nbytes for tensor in tensors.values())
    # What the allocator takes once, and threads of earlier tests, is none of these cycles': a leak grows in each round.
    slopes = [growth(pipeline, tensors, fused)]
    while min(slopes) >= one / 10 and len(slopes) < ROUNDS:
        slopes.append(growth(pipeline, tensors, fused))
    assert tensor_count() - before < CYCLES, "one left behind at each cycle would be as many"
    assert min(slopes) < one / 10, f"{slopes} bytes a cycle, where an adapter has {one}"


def growth(pipeline: UnetAlone, tensors: dict[str, torch.Tensor], fused: bool) -> float:
    """By how many bytes the process grows in each of many cycles."""
    process, resident = psutil.Process(), []
    for _ in range(CYCLES):
        cycle(pipeline, tensors, fused)
        resident.append(process.memory_info().rss)
    return float(numpy.polyfit(numpy.arange(CYCLES), resident, 1)[0])
