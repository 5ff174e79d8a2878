"""An adapter's file from loading to unloading, and there and back: every change checked, and no trace left."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lorry
from lorry.binding import bind
from lorry.dialects import DIALECTS, read_adapter
from lorry.errors import UnsupportedAdapterError
from lorry.files import read_adapter_file
from lorry.pipelines.components import components_of
from lorry.workflows.convert import convert_file
from rows import Changes

WRITTEN = [dialect.name for dialect in DIALECTS if dialect.is_written]
CARRY = {"kohya", "onetrainer", "diffusers", "peft", "comfyui", "dotted-kohya", "lycoris"}
"""The dialects that have names for the LoRAs of any layer."""
Weights = dict[str, dict[str, Tensor]]
Models = Mapping[str, nn.Module]


def models_of(pipe: Any) -> Models:
    return {part: model for part, model in components_of(pipe).items() if model is not None}


def weights(models: Models) -> Weights:
    """Copies of everything that the models hold, by component and name."""
    return {part: {n: t.clone() for n, t in model.state_dict().items()} for part, model in models.items()}


def check_same(models: Models, before: Weights) -> None:
    after = {part: model.state_dict() for part, model in models.items()}
    for part, tensors in before.items():
        assert after[part].keys() == tensors.keys(), part
        changed = [name for name, tensor in tensors.items() if not torch.equal(after[part][name], tensor)]
        assert not changed, (part, changed)


def check_near(got: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    largest = (got.detach().double() - expected.detach().double()).abs().max()
    error = float(largest / expected.detach().abs().max().clamp(min=1e-9))
    assert error <= tolerance, f"{name}: {error:.1e}"


def expected_layers(models: Models, changes: Changes) -> dict[tuple[str, str], nn.Module]:
    """Copies of the changed layers in float64, with the changes added to their parameters."""
    made: dict[tuple[str, str], nn.Module] = {}
    for part, found in changes.items():
        for name, change in found.items():
            path, _, parameter = name.rpartition(".")
            if (part, path) not in made:
                made[part, path] = copy.deepcopy(models[part].get_submodule(path)).double()
            with torch.no_grad():
                made[part, path].get_parameter(parameter).add_(change)
    return made


def outputs(layers: Mapping[tuple[str, str], nn.Module], dtype: torch.dtype) -> dict[tuple[str, str], Tensor]:
    """What layers make of the same input."""
    return {place: _output(layer, dtype) for place, layer in layers.items()}


def _output(layer: nn.Module, dtype: torch.dtype) -> Tensor:
    random = torch.Generator().manual_seed(0)
    weight: Any = layer.weight
    if weight.ndim <= 2:
        shape = (3, weight.shape[-1])
    else:
        layer_: Any = layer
        shape = (2, layer_.in_channels, *(6 for _ in weight.shape[2:]))
    with torch.no_grad():
        return layer(torch.randn(shape, generator=random).to(dtype))


def live(models: Models, places: Mapping[tuple[str, str], nn.Module]) -> dict[tuple[str, str], nn.Module]:
    return {(part, path): models[part].get_submodule(path) for part, path in places}


def check_outputs(models: Models, layers: Mapping[tuple[str, str], nn.Module]) -> None:
    expected, got = outputs(layers, torch.float64), outputs(live(models, layers), torch.float32)
    for place, output in expected.items():
        check_near(got[place], output, 1e-5, str(place))


def check_weights(models: Models, layers: Mapping[tuple[str, str], nn.Module], before: Weights) -> None:
    """The changed layers hold what is expected, and nothing else is changed."""
    for (part, path), layer in layers.items():
        for name, parameter in layer.named_parameters():
            check_near(
                models[part].get_submodule(path).get_parameter(name), parameter, 1e-6, f"{path}.{name}"
            )
    for part, tensors in before.items():
        for name, tensor in models[part].state_dict().items():
            if (part, name.rpartition(".")[0]) not in layers:
                assert torch.equal(tensor, tensors[name]), name


def walk(
    pipe: Any, path: Path, changes: Changes, strengths: Sequence[float] = (0.5, -1.0)
) -> lorry.LoadReport:
    """Load a file, fuse it, unfuse and unload it; every layer of it must change as expected, and nothing stay.

    Args:
        pipe: a pipeline.
        path: the file.
        changes: what the file changes at strength 1, to which other strengths are in proportion.
        strengths: other strengths to act and to be fused at.
    """
    models = models_of(pipe)
    before, layers = weights(models), expected_layers(models, changes)
    partly = {strength: expected_layers(models, _times(strength, changes)) for strength in strengths}
    plain = outputs(live(models, layers), torch.float32)
    report = pipe.load_lora_weights(path)
    check_same(models, before)
    check_outputs(models, layers)
    names = pipe.get_active_adapters()
    for strength, expected in partly.items():
        pipe.set_adapters(names, [strength] * len(names))
        check_outputs(models, expected)
        pipe.fuse_lora()
        check_weights(models, expected, before)
        pipe.unfuse_lora()
        check_same(models, before)
    pipe.set_adapters(names)
    pipe.fuse_lora()
    check_weights(models, layers, before)
    check_outputs(models, layers)
    pipe.unfuse_lora()
    check_same(models, before)
    check_outputs(models, layers)
    pipe.unload_lora_weights()
    check_same(models, before)
    for place, output in outputs(live(models, layers), torch.float32).items():
        assert torch.equal(output, plain[place]), place
    return report


def _times(strength: float, changes: Changes) -> Changes:
    return {
        part: {name: strength * change for name, change in found.items()} for part, found in changes.items()
    }


def there(source: Path, to: str, folder: Path, models: Models) -> Path | None:
    """Convert a file, and return the new one; None where the dialect refuses it by name."""
    folder.mkdir(exist_ok=True)
    out = folder / (to if to == "peft" else f"{to}.safetensors")
    try:
        convert_file(source, out, to, lambda _: models)
    except UnsupportedAdapterError as error:
        if out.exists() or not (f"{to!r}" in str(error) or "no common form" in str(error)):
            raise AssertionError(error) from error
        return None
    return out


def check_same_effect(one: Path, two: Path, models: Models) -> None:
    """Both change the same parameters in the same way; one that is changed by zeros is not changed."""
    first, second = changes_of(one, models), changes_of(two, models)
    assert first.keys() == second.keys(), first.keys() ^ second.keys()
    for name, change in first.items():
        torch.testing.assert_close(change, second[name], rtol=1e-5, atol=1e-6)


def changes_of(path: Path, models: Models) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for part, deltas in bind(read_adapter(read_adapter_file(path)), models).deltas.items():
        for name, delta in deltas.items():
            layer = models[part].get_submodule(name)
            for parameter in ("weight", "bias"):
                own = delta.part(parameter)
                change = None if own is None else own.weight(getattr(layer, parameter))
                if change is not None and change.any():
                    found[f"{part}.{name}.{parameter}"] = change
    return found


def check_same_file(one: Path, two: Path) -> None:
    """Both hold the same tensors, bit for bit, but for alphas that say what goes without saying."""
    first, second = without_idle_alphas(one), without_idle_alphas(two)
    assert first.keys() == second.keys(), sorted(first.keys() ^ second.keys())[:6]
    for key, tensor in first.items():
        assert tensor.dtype == second[key].dtype, key
        assert torch.equal(tensor, second[key]), key


def without_idle_alphas(path: Path) -> dict[str, Tensor]:
    """A file's tensors without alphas that change nothing.

    That of a LoRA may be its rank, which PEFT's config cannot leave out; a LoKr of two whole matrices has
    no use for any.
    """
    tensors = read_adapter_file(path).tensors
    return {key: tensor for key, tensor in tensors.items() if not _is_idle(key, tensors)}


def _is_idle(key: str, tensors: Mapping[str, Tensor]) -> bool:
    layer, _, suffix = key.rpartition(".")
    if suffix != "alpha":
        return False
    if f"{layer}.lora_down.weight" in tensors:
        return float(tensors[key]) == len(tensors[f"{layer}.lora_down.weight"])
    return f"{layer}.lokr_w1" in tensors and f"{layer}.lokr_w2" in tensors


def check_there_and_back(source: Path, own: str, folder: Path, models: Models) -> set[str]:
    """Convert a file to each dialect that can carry it, and back to its own, or the first of them, bit for bit.

    Returns:
        The dialects that can carry it.
    """
    made = {to: there(source, to, folder / "there", models) for to in WRITTEN}
    found = {to: path for to, path in made.items() if path is not None}
    home = own if own in found else next(iter(found))
    for to, path in found.items():
        check_same_effect(source, path, models)
        back = there(path, home, folder / f"back from {to}", models)
        assert back is not None, (to, home)
        check_same_file(found[home], back)
    return set(found)
