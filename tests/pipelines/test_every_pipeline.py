"""Each pipeline class of diffusers that takes adapters: the whole loader API on it, and diffusers' numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lorry
from lorry.names import DENOISERS
from pipelines import every

Tensors = dict[str, Tensor]
OUT_OF_REACH = {
    "Kandinsky3UNet": "has no loader of its own",
    "UNet3DConditionModel": "has no loader of its own",
    "WanAnimate2Transformer3DModel": "has no `image_dim`, which the pipeline's loader asks for",
}
"""Models into which diffusers cannot load what its pipelines read."""
seen: set[tuple[type, ...]] = set()
"""The loaders and models that were walked through already: many pipelines differ in neither."""


@pytest.mark.parametrize("name", tuple(every.pipelines()))
def test_the_loader_api_works_on_the_class_with_diffusers_numbers(name: str, tmp_path: Path) -> None:
    pipe = every.build(name)
    before, tensors = every.weights(pipe), every.adapter(pipe)
    components = list(dict.fromkeys(key.partition(".")[0] for key in tensors))
    assert any(component in DENOISERS for component in components)
    loader = next(cls for cls in type(pipe).__mro__ if cls.__name__.endswith("LoraLoaderMixin"))
    kind = (loader, *(type(getattr(pipe, component)) for component in components))
    lorry.attach(pipe)
    report = pipe.load_lora_weights(tensors, adapter_name="a")
    assert report.applied == report.key_count == len(tensors)
    assert pipe.get_list_adapters() == {component: ["a"] for component in components}
    if kind not in seen:
        seen.add(kind)
        check_weighing_and_fusing(pipe, components, tensors, before)
        fused = check_saving(pipe, components, tensors, before, tmp_path)
        compare_with_diffusers(name, tensors, fused)
        pipe.load_lora_weights(tensors)
    pipe.unload_lora_weights()
    assert pipe.get_list_adapters() == {}
    check_same(pipe, before)


def check_weighing_and_fusing(
    pipe: Any, components: list[str], tensors: Tensors, before: every.Weights
) -> None:
    pipe.set_adapters(["a"], [dict.fromkeys(components, 0.7)])
    pipe.fuse_lora(lora_scale=0.5)
    check_fused(before, every.weights(pipe), tensors, 0.35)
    pipe.unfuse_lora()
    check_same(pipe, before)
    pipe.disable_lora()
    assert all(not getattr(pipe, component).lorry.enabled for component in components)
    pipe.enable_lora()
    pipe.delete_adapters("a")
    assert pipe.get_list_adapters() == {}


def check_saving(
    pipe: Any, components: list[str], tensors: Tensors, before: every.Weights, folder: Path
) -> every.Weights:
    """Save an adapter, load and fuse it; what is then fused is returned."""
    layers = {f"{component}_lora_layers": own(tensors, component) for component in components}
    type(pipe).save_lora_weights(folder, **layers)
    pipe.load_lora_weights(folder)
    pipe.fuse_lora(components=components)
    fused = every.weights(pipe)
    check_fused(before, fused, tensors, 1.0)
    pipe.unload_lora_weights()
    return fused


def own(tensors: Tensors, component: str) -> Tensors:
    prefix = f"{component}."
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}


def check_same(pipe: Any, before: every.Weights) -> None:
    after = every.weights(pipe)
    assert after.keys() == before.keys()
    for component, found in before.items():
        assert all(torch.equal(after[component][name], weight) for name, weight in found.items()), component


def check_fused(before: every.Weights, fused: every.Weights, tensors: Tensors, strength: float) -> None:
    for component, found in fused.items():
        expected = dict(before[component])
        for key, down in own(tensors, component).items():
            path, is_down, _ = key.partition(".lora_A.")
            if is_down:
                up, weight = tensors[f"{component}.{path}.lora_B.weight"], expected[f"{path}.weight"]
                full = weight.double() + strength * up.double() @ down.double()
                expected[f"{path}.weight"] = full.to(weight)
        assert every.largest_difference(found, expected) < 1e-6, component


def compare_with_diffusers(name: str, tensors: Tensors, expected: every.Weights) -> None:
    """Hold against `expected` what diffusers fuses of the file, as far as it loads it."""
    theirs = every.build(name)
    loaded = {
        part: type(getattr(theirs, part)).__name__
        for part in theirs._lora_loadable_modules
        if part in expected
    }
    first = next((part for part in loaded if part in DENOISERS), None)
    chosen = [part for part, cls in loaded.items() if part == first or "CLIP" in cls]
    if first is None or loaded[first] in OUT_OF_REACH:
        return
    theirs.load_lora_weights({key: t for key, t in tensors.items() if key.partition(".")[0] in chosen})
    theirs.fuse_lora(components=chosen)
    found = every.weights(theirs)
    for part in chosen:
        assert every.largest_difference(found[part], expected[part]) < 1e-5, part
