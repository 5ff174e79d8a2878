"""A model without weights, of which `bind` learns what modules a checkpoint has and what they carry."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Size, Tensor, nn

from lorry.workflows.checkpoints.checkpoint import Checkpoint


def skeleton_of(checkpoint: Checkpoint, component: str) -> nn.Module:
    """Return modules of a component's names and shapes on the meta device; nothing of it can be run.

    Its class has the name of the component's own, by which tables of original names are found.
    """
    outlines = {name: checkpoint.outline(place) for name, place in checkpoint.components[component].items()}
    root = type(checkpoint.classes.get(component, "Skeleton"), (nn.Module,), {})()
    modules: dict[str, dict[str, Tensor]] = {}
    for name, outline in outlines.items():
        path, _, parameter = name.rpartition(".")
        modules.setdefault(path, {})[parameter] = outline
    for path in sorted(modules, key=lambda path: path.count(".")):
        _put(root, path, modules[path])
    return root


def _put(root: nn.Module, path: str, parameters: Mapping[str, Tensor]) -> None:
    *parents, last = path.split(".") if path else [""]
    module = root
    for part in parents:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    if last:
        module.add_module(last, _leaf(parameters))
    else:
        _register(module, parameters)


def _leaf(parameters: Mapping[str, Tensor]) -> nn.Module:
    weight, bias = parameters.get("weight"), "bias" in parameters
    shape = Size() if weight is None else weight.shape
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0], bias, device="meta")
    if len(shape) > 2:
        kinds = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
        return kinds[len(shape)](shape[1], shape[0], tuple(shape[2:]), bias=bias, device="meta")
    module = nn.Module()
    _register(module, parameters)
    return module


def _register(module: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    for name, outline in parameters.items():
        module.register_parameter(name, nn.Parameter(outline.to("meta"), requires_grad=False))
