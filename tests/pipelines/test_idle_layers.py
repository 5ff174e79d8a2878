"""An attention whose layers are fused, or taken apart, while adapters are on them: said, and not drawn without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lorry
from lorry.errors import StateError
from lorry.files import write_safetensors
from models import tiny_flux_pipeline, tiny_sd_pipeline
from snapshots import check_same, snapshot

Make = Callable[[], Any]
MAKES = {"unet": tiny_sd_pipeline, "transformer": tiny_flux_pipeline}


def drawn(pipe: Any) -> Tensor:
    size = {"height": 16, "width": 16, "num_inference_steps": 1, "output_type": "pt"}
    return pipe("a cat", generator=torch.Generator().manual_seed(0), **size).images


def lora(component: str, model: torch.nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {
        path: layer.weight.shape
        for path, layer in model.named_modules()
        if path.endswith((".to_k", ".to_v")) and isinstance(layer, torch.nn.Linear)
    }
    return {
        f"{component}.{path}.{key}.weight": torch.randn(shape)
        for path, (outputs, inputs) in shapes.items()
        for key, shape in (("lora_A", (2, inputs)), ("lora_B", (outputs, 2)))
    }


@pytest.fixture(params=MAKES)
def made(request: pytest.FixtureRequest) -> tuple[Any, Any, dict[str, Tensor]]:
    """A pipeline with the loader, its denoiser, and a LoRA of the keys and values."""
    pipe = lorry.attach(MAKES[request.param]())
    model = getattr(pipe, request.param)
    return pipe, model, lora(request.param, model)


Made = tuple[Any, Any, dict[str, Tensor]]


def test_a_call_and_a_fuse_say_that_the_layers_were_fused_after_loading(made: Made) -> None:
    pipe, model, tensors = made
    bare = drawn(pipe)
    pipe.load_lora_weights(tensors)
    acting = drawn(pipe)
    assert not torch.equal(acting, bare)
    model.fuse_qkv_projections()
    before = snapshot(model)
    for action in (lambda: drawn(pipe), pipe.fuse_lora):
        with pytest.raises(StateError, match=r"to_k`: the \w+ does not call this layer any more"):
            action()
    check_same(snapshot(model), before)
    pipe.disable_lora()
    drawn(pipe)
    pipe.enable_lora()
    model.unfuse_qkv_projections()
    assert torch.equal(drawn(pipe), acting)
    pipe.unload_lora_weights()
    assert torch.equal(drawn(pipe), bare)


def test_what_is_in_the_weights_already_goes_along_and_comes_out_when_they_are_apart_again(
    made: Made,
) -> None:
    pipe, model, tensors = made
    bare = drawn(pipe)
    pipe.load_lora_weights(tensors)
    pipe.fuse_lora()
    fused = drawn(pipe)
    model.fuse_qkv_projections()
    torch.testing.assert_close(drawn(pipe), fused, rtol=1e-4, atol=1e-4)
    for action in (pipe.unfuse_lora, pipe.unload_lora_weights):
        with pytest.raises(StateError, match="unfuse_qkv_projections"):
            action()
    model.unfuse_qkv_projections()
    assert torch.equal(drawn(pipe), fused)
    pipe.unload_lora_weights()
    assert torch.equal(drawn(pipe), bare)


def test_a_call_says_that_the_layers_were_taken_apart_after_loading(made: Made) -> None:
    pipe, model, tensors = made
    model.fuse_qkv_projections()
    bare = drawn(pipe)
    pipe.load_lora_weights(tensors)
    assert not torch.equal(drawn(pipe), bare)
    model.unfuse_qkv_projections()
    with pytest.raises(StateError, match=r"to_(q?kv)`: the \w+ does not call"):
        drawn(pipe)
    pipe.unload_lora_weights()
    torch.testing.assert_close(drawn(pipe), bare, rtol=1e-4, atol=1e-4)


def test_layers_that_are_fused_again_are_loaded_into_again(made: Made, tmp_path: Path) -> None:
    pipe, model, tensors = made
    file = write_safetensors(
        tmp_path / "one.safetensors", tensors
    )  # of a layout that is known from the second time on
    drawings = []
    for _ in range(3):
        model.fuse_qkv_projections()
        pipe.load_lora_weights(str(file))
        drawings.append(drawn(pipe))
        pipe.unload_lora_weights()
        model.unfuse_qkv_projections()
        pipe.load_lora_weights(str(file))
        torch.testing.assert_close(drawn(pipe), drawings[-1], rtol=1e-4, atol=1e-4)
        pipe.unload_lora_weights()
    assert not torch.equal(drawn(pipe), drawings[0])
    assert torch.equal(drawings[0], drawings[1])
    assert torch.equal(drawings[0], drawings[2])


def test_blocks_that_are_gone_with_their_layers_are_passed_over() -> None:
    pipe = lorry.attach(tiny_flux_pipeline())
    pipe.load_lora_weights(lora("transformer", pipe.transformer))
    pipe.transformer.single_transformer_blocks = torch.nn.ModuleList()
    pipe.fuse_lora()
    pipe.unfuse_lora()
    assert drawn(pipe).isfinite().all()


def test_a_layer_that_was_put_in_anothers_place_is_told(made: Made) -> None:
    pipe, model, tensors = made
    bare = drawn(pipe)
    pipe.load_lora_weights(tensors, adapter_name="a")
    path = next(iter(tensors)).split(".", 1)[1].removesuffix(".lora_A.weight")
    owner, name = model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
    carrying = getattr(owner, name)
    setattr(owner, name, torch.nn.Linear(carrying.in_features, carrying.out_features, bias=False))
    getattr(owner, name).weight.data = carrying.weight.data.clone()
    before = snapshot(model)
    for action in (lambda: drawn(pipe), pipe.fuse_lora, lambda: pipe.load_lora_weights(tensors)):
        with pytest.raises(StateError, match=rf"{name}`: another one stands here.*unload_lora_weights"):
            action()
        assert pipe.get_list_adapters() == {pipe_component(pipe): ["a"]}
    check_same(snapshot(model), before)
    pipe.unload_lora_weights()
    assert type(carrying) is torch.nn.Linear
    pipe.load_lora_weights(tensors)
    assert not torch.equal(drawn(pipe), bare)


def pipe_component(pipe: Any) -> str:
    return "unet" if hasattr(pipe, "unet") else "transformer"


def test_layers_and_blocks_that_are_wrapped_after_loading_go_on_acting(made: Made) -> None:
    pipe, model, tensors = made
    pipe.load_lora_weights(tensors)
    acting = drawn(pipe)
    path = next(iter(tensors)).split(".", 1)[1].removesuffix(".lora_A.weight")
    for wrapped in (path, path.rpartition(".")[0]):
        owner, _, name = wrapped.rpartition(".")
        holder = model.get_submodule(owner)
        holder._modules[name] = torch.compile(holder._modules[name], backend="eager")
    assert torch.equal(drawn(pipe), acting)
