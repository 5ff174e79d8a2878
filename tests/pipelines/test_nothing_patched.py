"""The classes and functions of torch, diffusers and transformers are the same objects whatever lorry does."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from pipelines import oracle
from pipelines.conftest import Files

NAMESPACES: list[Any] = [
    torch,
    torch.nn,
    torch.nn.functional,
    torch.nn.init,
    torch.Tensor,
    nn.Parameter,
    nn.Module,
    nn.Linear,
    nn.Conv2d,
    diffusers.DiffusionPipeline,
    diffusers.ModelMixin,
    diffusers.StableDiffusionPipeline,
    diffusers.UNet2DConditionModel,
    transformers.PreTrainedModel,
    transformers.CLIPTextModel,
]


def identities() -> dict[str, int]:
    return {
        f"{space.__name__}.{name}": id(value) for space in NAMESPACES for name, value in vars(space).items()
    }


def test_no_operation_puts_anything_of_its_own_into_the_classes_of_others(files: Files) -> None:
    pipe = oracle.ours("sd")
    oracle.drawn(pipe)  # what others load lazily is there by then
    before = identities()
    seen: list[dict[str, int]] = []
    hook = pipe.unet.register_forward_hook(lambda *_: seen.append(identities()))
    for step in (
        lambda: pipe.load_lora_weights(files.get("sd"), adapter_name="a"),
        lambda: pipe.load_lora_weights(files.get("sd", "b"), adapter_name="b"),
        lambda: pipe.set_adapters(["a", "b"], [0.5, 0.25]),
        lambda: pipe.fuse_lora(),
        lambda: pipe.unfuse_lora(),
        lambda: pipe.disable_lora(),
        lambda: pipe.enable_lora(),
        lambda: oracle.drawn(pipe, cross_attention_kwargs={"scale": 0.5}),
        lambda: pipe.delete_adapters("b"),
        lambda: pipe.unload_lora_weights(),
    ):
        step()
        assert identities() == before
    hook.remove()
    assert seen
    assert all(one == before for one in seen)
