"""Everything of a model that an operation may have to leave alone, taken down and compared bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lorry.patching import find_state

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Classes, attributes, hooks, keys, and every tensor (its identity, and a copy of its values)."""
    seen: dict[str, Any] = {
        "keys": list(model.state_dict()),
        "modules": [p for p, _ in model.named_modules()],
    }
    seen["parameters"] = [path for path, _ in model.named_parameters()]
    for path, module in model.named_modules():
        seen[f"{path}:self"] = (id(module), type(module))
        attributes = dict(vars(module))
        seen[f"{path}:attributes"] = sorted(attributes)
        seen[f"{path}:forward"] = attributes.get("forward")
        seen[f"{path}:trained"] = attributes.get("lorry_trained")
        seen[f"{path}:not persistent"] = set(module._non_persistent_buffers_set)
        seen[f"{path}:hooks"] = {hook: list(getattr(module, hook).values()) for hook in HOOKS}
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            seen[f"{path}.{name}"] = None if tensor is None else _tensor(tensor)
    state = find_state(model)
    if state is not None:
        seen |= {f"state: {name}": _value(value) for name, value in vars(state).items() if name != "model"}
    return seen


def _tensor(tensor: Tensor) -> tuple[Any, ...]:
    return (id(tensor), tensor.dtype, tensor.device, tensor.requires_grad, tensor.detach().clone())


def _value(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _value(item) for key, item in value.items()}
    return value


def check_same(after: Mapping[str, Any], before: Mapping[str, Any], identity: bool = True) -> None:
    """Raise where two snapshots differ in anything; without `identity`, tensors may be others of the same bits."""
    assert after.keys() == before.keys(), sorted(after.keys() ^ before.keys())
    for name, value in before.items():
        if not identity and isinstance(value, tuple) and value and isinstance(value[-1], Tensor):
            assert _same(after[name][1:], value[1:]), f"{name}: {value} has become {after[name]}"
            continue
        assert _same(after[name], value), f"{name}: {value} has become {after[name]}"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(_readable(one), _readable(other))
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    return bool(one == other)


def _readable(tensor: Tensor) -> Tensor:
    """The values of a tensor of whatever kind, in a form that `torch.equal` takes (for which nan is unlike nan)."""
    if type(tensor.data) is not Tensor:
        tensor = tensor.data.dequantize()
    elif tensor.dtype.itemsize == 1 and tensor.is_floating_point():
        tensor = tensor.view(torch.uint8)
    return tensor.nan_to_num()
