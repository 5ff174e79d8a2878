"""Adapters in training: their tensors are parameters of the modules where they act."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from lorry.algebra import Delta, LoraDelta, LowRank, MovedDelta
from lorry.errors import FuseError, StateError
from lorry.patching.layer_kinds import check_plain, made_by
from lorry.patching.placement import casts_at_calls
from lorry.patching.side_path import Formula, SidePath, trained_names
from lorry.patching.strength import Strength
from lorry.patching.undo import Undo


def place_trained(
    path: str,
    module: SidePath,
    acting: Mapping[str, tuple[Delta, Strength]],
    undo: Undo,
    *,
    any_fused: bool = False,
) -> None:
    """Give a module the parameters of these adapters, and of no others.

    A LoRA acts by its factors, and one that began elsewhere than at zero by those that it began with too, which are
    subtracted; every other family acts by its formula on the module's weight.

    Raises:
        StateError: a formula cannot be had here: the weight is packed, or adapters are fused (`any_fused`).
    """
    _drop_trained(module, undo)
    by_factors: list[str] = []
    by_formula: list[Formula] = []
    for name, (delta, strength) in acting.items():
        pairs = _pairs(name, delta, strength.at(path))
        for pair, (factors, sign) in pairs.items():
            _put_factors(module, pair, factors, sign, undo)
            by_factors.append(pair)
        if not pairs:
            _check_trains(path, module, delta, any_fused)
            formula = Formula(name, delta, strength.at(path))
            for attribute, parameter in formula.parameters().items():
                undo.set_item(module._parameters, attribute, parameter)
            by_formula.append(formula)
    for attribute, value in (("lorry_trained", tuple(by_factors)), ("lorry_formulas", tuple(by_formula))):
        if value:
            undo.set_item(vars(module), attribute, value)
        elif attribute in vars(module):
            undo.delete_item(vars(module), attribute)


def check_passes_gradients(path: str, module: nn.Module) -> None:
    """Raise where a layer's own arithmetic would keep gradients from the layers before it.

    Raises:
        StateError: it is a torchao layer that quantizes its input, or a convolution under layerwise casting.
    """
    weight = module._parameters.get("weight")
    if weight is None:
        return
    if made_by(weight.data, "torchao") and vars(weight.data).get("act_quant_kwargs") is not None:
        raise StateError(
            f"`{path}` quantizes what it is given (torchao), and no gradient comes back through that. For training, "
            "quantize the weights alone."
        )
    if isinstance(module, nn.Conv2d) and casts_at_calls(module):
        raise StateError(
            f"`{path}`: layerwise casting takes a convolution's weight away after each call, and its gradient needs "
            "it. For training, cast linear layers only (`skip_modules_classes`)."
        )


def _pairs(name: str, delta: Delta, strength: float) -> dict[str, tuple[LowRank, float]]:
    """Return the pairs of factors that an adapter acts by, each with its strength; none where it acts by a formula.

    No adapter's name has a dot.
    """
    if isinstance(delta, MovedDelta):
        began = _pairs(f"{name}.start", delta.start, -strength)
        return {**_pairs(name, delta.now, strength), **began}
    if isinstance(delta, LoraDelta) and delta.mid is None:
        return {name: (delta.low_rank(), strength)}
    return {}


def _put_factors(module: SidePath, name: str, pair: LowRank, strength: float, undo: Undo) -> None:
    down, up, scale = trained_names(name)
    undo.set_item(module._parameters, down, pair.down)
    undo.set_item(module._parameters, up, pair.up)
    vector = torch.full((pair.rank,), pair.scale * strength, dtype=torch.float32, device=pair.down.device)
    undo.set_item(module._buffers, scale, vector)


def _check_trains(path: str, module: SidePath, delta: Delta, any_fused: bool) -> None:
    if any_fused:
        raise StateError(
            f"Unfuse the fused adapters first: {delta.family} is trained on the original weights."
        )
    try:
        check_plain(path, module, "weight")
    except FuseError as error:
        raise StateError(
            f"`{path}` ({type(module).__name__}): {delta.family} is trained on the weight itself, which is packed or "
            "not here. On such a base train a LoRA."
        ) from error


def _drop_trained(module: SidePath, undo: Undo) -> None:
    for name in module.lorry_trained:
        for key in trained_names(name):
            undo.delete_item(module._parameters if key in module._parameters else module._buffers, key)
    for formula in module.lorry_formulas:
        for attribute in formula.parameters():
            undo.delete_item(module._parameters, attribute)
