"""Which layers of a model an adapter can be fused into, by the kind of their weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import Tensor, nn

from lorry.algebra import Delta
from lorry.binding import carriers, weight_shape
from lorry.errors import FuseError
from lorry.patching.fuse_loss import FuseLoss
from lorry.patching.fusing import fused_parameter
from lorry.patching.layer_kinds import Plain, find_kind, refusal_of
from lorry.patching.sharded import check_not_fully_sharded

Fusing = Literal["exact", "with loss", "side path only"]
Contributions = Mapping[str, Sequence[tuple[Delta, float]]]
"""By the path of a layer: what is to be fused into it, each at a strength."""


@final
@dataclass(frozen=True, slots=True)
class LayersOfAKind:
    """What fusing would do to the layers of one model that keep their weights in one way."""

    component: str
    """The model's name in its pipeline, or its class's name."""
    kind: str
    """How they keep their weights."""
    layers: int
    fusing: Fusing
    """`"exact"`: the sum is computed from the original in float32 at least, rounded once to the weight's dtype, and
    unfusing brings the original's bits back. `"with loss"`: `fuse_lora` refuses, unless `lossy=True` asks it to
    quantize the sum again; unfusing brings the original's bits back all the same. `"side path only"`: it refuses."""
    rounding: float | None
    """Where it is exact, how much that one rounding moves a weight, as a part of it (root of mean squares): measured on
    one of the layers, with a small change added. Else None."""
    reason: str | None
    """Why it is refused and what to do; None where it is not."""
    loss: FuseLoss | None = None
    """Where it is with loss, how much: of the adapter that was asked about, on all these layers; else of a random
    change by a hundredth of the weight, on one of them."""
    by_layer: Mapping[str, FuseLoss] = field(default_factory=dict)
    """The same for each layer that was measured."""


def layers_by_kind(
    component: str,
    model: nn.Module,
    only: Collection[str] | None = None,
    deltas: Contributions | None = None,
) -> list[LayersOfAKind]:
    """Sort the layers of a model that can carry an adapter by how they keep their weights.

    Args:
        component: what to call the model.
        model: is not changed.
        only: the paths of the layers that count; all when None.
        deltas: what would be fused into these layers, where that is to be measured.
    """
    found: dict[tuple[str, str | None, bool], dict[str, nn.Module]] = {}
    spread = _is_spread(model)
    for path, module in carriers(model).items():
        parameter = module._parameters.get("weight")
        if parameter is None or weight_shape(module) is None or (only is not None and path not in only):
            continue
        kind = find_kind(module)
        label = type(parameter.data).__name__ if kind is None else kind.name
        if isinstance(kind, Plain):
            label = f"{kind.name}, {str(parameter.dtype).removeprefix('torch.')}"
        refusal, lossy = refusal_of(kind, module, parameter)
        key = (label, spread or refusal, lossy and spread is None)
        found.setdefault(key, {})[path] = module
    return [_row(component, *key, layers, deltas) for key, layers in found.items()]


def _row(
    component: str,
    label: str,
    refusal: str | None,
    lossy: bool,
    layers: Mapping[str, nn.Module],
    deltas: Contributions | None,
) -> LayersOfAKind:
    first = next(iter(layers))
    if refusal is None:
        return LayersOfAKind(component, label, len(layers), "exact", _rounding(layers[first]), None)
    reason = refusal.format(key="weight", held=label).removesuffix(".")
    if not lossy:
        return LayersOfAKind(component, label, len(layers), "side path only", None, reason)
    measured = [first] if deltas is None else layers
    losses = {path: _loss(layers[path], None if deltas is None else deltas[path]) for path in measured}
    total = FuseLoss.total(losses.values())
    return LayersOfAKind(component, label, len(layers), "with loss", None, reason, total, losses)


def _is_spread(model: nn.Module) -> str | None:
    try:
        check_not_fully_sharded(model)
    except FuseError as error:
        return str(error)
    return None


@torch.no_grad()
def _rounding(module: nn.Module) -> float:
    weight: Tensor = module._parameters["weight"].data  # pyright: ignore[reportOptionalMemberAccess]
    wide = weight.flatten()[: 1 << 16].double()
    changed = _changed(wide)
    lost = changed - changed.to(weight.dtype).double()
    return float((lost.square().sum() / changed.square().sum().clamp(min=1e-300)).sqrt())


@torch.no_grad()
def _loss(module: nn.Module, parts: Sequence[tuple[Delta, float]] | None) -> FuseLoss:
    parameter, kind = module._parameters["weight"], find_kind(module)
    if parameter is None or kind is None:
        raise FuseError("has no weight of a kind that can be quantized again")
    base = kind.plain(module, parameter).float()
    weights = [
        (part, strength) for delta, strength in parts or () if (part := delta.part("weight")) is not None
    ]
    exact = _changed(base) if parts is None else fused_parameter(base, weights)
    return FuseLoss.of(base, exact, kind.plain(module, kind.repacked(module, parameter, exact)).float())


def _changed(weight: Tensor) -> Tensor:
    """The weight with a random change by a hundredth of it."""
    random = torch.Generator().manual_seed(0)
    change = torch.randn(weight.shape, generator=random, dtype=weight.dtype, device="cpu").to(weight.device)
    return weight + 0.01 * weight.square().mean().sqrt() * change
