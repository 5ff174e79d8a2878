"""Which layers of a model an adapter can be fused into, by the kind of their weights."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from lorry.binding import carriers, weight_shape
from lorry.errors import FuseError
from lorry.patching.layer_kinds import LayerKind, Plain, find_kind
from lorry.patching.sharded import check_not_fully_sharded

Fusing = Literal["exact", "side path only"]


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
    unfusing brings the original's bits back. `"side path only"`: `fuse_lora` refuses."""
    rounding: float | None
    """Where it is exact, how much that one rounding moves a weight, as a part of it (root of mean squares): measured on
    one of the layers, with a small change added. Else None."""
    reason: str | None
    """Why it is refused and what to do; None where it is not."""


def layers_by_kind(
    component: str, model: nn.Module, only: Collection[str] | None = None
) -> list[LayersOfAKind]:
    """Sort the layers of a model that can carry an adapter by how they keep their weights.

    Args:
        component: what to call the model.
        model: is not changed.
        only: the paths of the layers that count; all when None.
    """
    found: dict[tuple[str, str | None], list[tuple[str, nn.Module]]] = {}
    spread = _is_spread(model)
    for path, module in carriers(model).items():
        parameter = module._parameters.get("weight")
        if parameter is None or weight_shape(module) is None or (only is not None and path not in only):
            continue
        kind = find_kind(module)
        label = type(parameter.data).__name__ if kind is None else kind.name
        if isinstance(kind, Plain):
            label = f"{kind.name}, {str(parameter.dtype).removeprefix('torch.')}"
        refusal = LayerKind.refusal if kind is None else kind.refusal
        found.setdefault((label, spread or refusal), []).append((path, module))
    return [
        LayersOfAKind(
            component,
            label,
            len(layers),
            "exact" if refusal is None else "side path only",
            _rounding(layers[0][1]) if refusal is None else None,
            None if refusal is None else refusal.format(key="weight", held=label).removesuffix("."),
        )
        for (label, refusal), layers in found.items()
    ]


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
    random = torch.Generator().manual_seed(0)
    change = torch.randn(wide.shape, generator=random, dtype=wide.dtype).to(wide.device)
    changed = wide + 0.01 * wide.square().mean().sqrt() * change
    lost = changed - changed.to(weight.dtype).double()
    return float((lost.square().sum() / changed.square().sum().clamp(min=1e-300)).sqrt())
