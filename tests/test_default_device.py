"""A caller's default device: `torch.set_default_device("cuda")` says where the caller's own tensors go, and no more.

No GPU is needed: the default is `meta` here, which holds no numbers, so that whatever lands there is missed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lorry
from lorry.files import write_safetensors
from pipelines.unet_alone import UnetAlone, attention_loras

SOURCES = Path(lorry.__file__).parent
MAKERS = {
    "arange",
    "as_tensor",
    "asarray",
    "empty",
    "empty_strided",
    "eye",
    "full",
    "linspace",
    "logspace",
    "ones",
    "rand",
    "randint",
    "randn",
    "randperm",
    "scalar_tensor",
    "tensor",
    "tril_indices",
    "triu_indices",
    "zeros",
}
"""Functions of torch that make a tensor on the default device where they are not told another."""


@contextmanager
def elsewhere() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("source", ["file", "halves", "pickle", "dict", "preloaded"])
def test_adapters_are_loaded_weighed_fused_and_taken_off(source: str, tmp_path: Path) -> None:
    pipeline, plain = UnetAlone(), UnetAlone()
    tensors = attention_loras(pipeline)
    if source == "halves":
        tensors = {key: tensor.half() for key, tensor in tensors.items()}
    path = tmp_path / ("adapter.bin" if source == "pickle" else "adapter.safetensors")
    if source == "pickle":
        torch.save(tensors, path)
    else:
        write_safetensors(path, tensors)
    with elsewhere():
        if source == "dict":
            pipeline.load_lora_weights(tensors, adapter_name="one")
        else:
            given = lorry.preload(path) if source == "preloaded" else str(path)
            pipeline.load_lora_weights(given, adapter_name="one")
        pipeline.set_adapters("one", 0.5)
        pipeline.fuse_lora()
    plain.load_lora_weights(tensors, adapter_name="one")
    plain.set_adapters("one", 0.5)
    plain.fuse_lora()
    check_alike(pipeline, plain)
    with elsewhere():
        pipeline.unfuse_lora()
        assert lorry.fuse_support(pipeline)
        lorry.prepare(pipeline, rank=4)
    plain.unfuse_lora()
    lorry.prepare(plain, rank=4)
    check_alike(pipeline, plain)
    with elsewhere():
        pipeline.unload_lora_weights()
    check_alike(pipeline, UnetAlone())


def check_alike(one: UnetAlone, other: UnetAlone) -> None:
    expected = tensors_of(other)
    assert tensors_of(one).keys() == expected.keys()
    for name, tensor in tensors_of(one).items():
        assert torch.equal(tensor, expected[name]), name


def tensors_of(pipeline: UnetAlone) -> dict[str, Tensor]:
    return {**dict(pipeline.unet.named_parameters()), **dict(pipeline.unet.named_buffers())}


def test_no_tensor_is_made_without_saying_where() -> None:
    silent = [
        f"{path.relative_to(SOURCES)}:{call.lineno}: {ast.unparse(call)}"
        for path in sorted(SOURCES.rglob("*.py"))
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and ast.unparse(call.func.value) == "torch"
        and call.func.attr in MAKERS
        and not any(keyword.arg in ("device", None) for keyword in call.keywords)
    ]
    assert not silent
