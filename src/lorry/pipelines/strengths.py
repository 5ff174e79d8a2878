"""Strengths as diffusers' users write them: a number, or numbers by component, block, block index and attention."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from torch import nn

from lorry.binding import carriers
from lorry.errors import StateError, did_you_mean
from lorry.patching import Strength, check_strength
from lorry.pipelines.parts import Strengths
from lorry.pipelines.tagged import strength_of
from lorry.prompts import LoraTag

UNET_PARTS = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}


def strength_for(given: object, component: str, model: nn.Module) -> Strength:
    """Return the strength that a user's value for one component means on `model`.

    Args:
        given: None (1.0), a number, a `Strengths`, a tag of a prompt, or a dict. For a UNet a dict is
            `{"down": …, "mid": …, "up": …}`, each a number, a list of one number per layer of the block (a block's
            sampler goes by the first, as in diffusers), or `{"block_1": number or list}`. For other models it is
            `{module path: number}`, which reaches that module and all below it. What a dict leaves out is at 1.0.
        component: the model's name in the pipeline.

    Raises:
        StateError: a value is no number, or names a block, layer or module that the model does not have.
    """
    if given is None:
        return Strength()
    if isinstance(given, (int, float)):  # most are, and to ask for the abstract kinds below takes longer
        return Strength(check_strength(given, "the strength"))
    if isinstance(given, Strengths):
        return given.on(component, model)
    if isinstance(given, LoraTag):
        return strength_of(given, component, model)
    if not isinstance(given, Mapping):
        return Strength(check_strength(given, "the strength"))
    paths = list(carriers(model))
    is_unet = any(path.startswith("down_blocks.") for path in paths)
    rules = dict(_unet_rules(given, paths) if is_unet else _path_rules(given, paths))
    return Strength(
        1.0, {path: rules[prefix] for path in paths if (prefix := _longest(path, rules)) is not None}
    )


def _longest(path: str, rules: Mapping[str, float]) -> str | None:
    parts = path.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in rules), None)


def _path_rules(given: Mapping[str, Any], paths: Sequence[str]) -> Iterable[tuple[str, float]]:
    known = set(paths)
    for path, value in given.items():
        if path not in known:
            raise StateError(f"{path!r} is not a module of this model.{did_you_mean(path, known)}")
        yield path, check_strength(value, path)


def _unet_rules(given: Mapping[str, Any], paths: Sequence[str]) -> Iterable[tuple[str, float]]:
    for part, value in given.items():
        if part not in UNET_PARTS:
            raise StateError(f"{part!r} is not a part of a UNet: expected 'down', 'mid' or 'up'.")
        block = UNET_PARTS[part]
        if part == "mid":
            yield (
                block,
                check_strength(value[0] if isinstance(value, list) and len(value) == 1 else value, "mid"),
            )
            continue
        indices = sorted(
            {path.split(".")[1] for path in paths if path.startswith(f"{block}.") and path.count(".")}
        )
        by_block = value if isinstance(value, Mapping) else {f"block_{index}": value for index in indices}
        for name, strengths in by_block.items():
            match = re.fullmatch(r"block_(\d+)", name)
            if match is None or match[1] not in indices:
                listed = ", ".join(f"block_{index}" for index in indices)
                raise StateError(f"{part!r} has no block {name!r}: this UNet has {listed}.")
            yield from _block_rules(f"{block}.{match[1]}", strengths, paths)


def _block_rules(block: str, strengths: object, paths: Sequence[str]) -> Iterable[tuple[str, float]]:
    if isinstance(strengths, list) and len(strengths) == 1:
        strengths = strengths[0]
    if not isinstance(strengths, list):
        yield block, check_strength(strengths, block)
        return
    layers = sum(re.fullmatch(rf"{re.escape(block)}\.resnets\.\d+", path) is not None for path in paths)
    if len(strengths) != layers:
        raise StateError(
            f"`{block}` has {layers} layers: expected as many strengths (or one), got {len(strengths)}."
        )
    for layer, strength in enumerate(strengths):
        for kind in ("attentions", "resnets", "motion_modules", "downsamplers", "upsamplers"):
            yield f"{block}.{kind}.{layer}", check_strength(strength, block)


def per_adapter(names: Sequence[str], weights: object) -> list[Any]:
    """Spread the `adapter_weights` of a call over its adapters: one value for all, or a list of one for each.

    Raises:
        StateError: the list has another length than `names`, or a name is there twice.
    """
    twice = [name for name in dict.fromkeys(names) if list(names).count(name) > 1]
    if twice:
        raise StateError(
            f"{', '.join(map(repr, twice))}: named twice. Name each adapter once, with one weight."
        )
    are_many = isinstance(weights, (list, tuple)) or getattr(weights, "ndim", 0) == 1
    listed = list(cast("Iterable[Any]", weights)) if are_many else [weights] * len(names)
    if len(listed) != len(names):
        raise StateError(
            f"Length of adapter names {len(names)} is not equal to the length of the weights {len(listed)}."
        )
    return listed


def for_component(weight: object, component: str, components: Iterable[str]) -> object:
    """Return what one adapter's weight says of one component.

    Raises:
        StateError: a dict names something that is not a component of the pipeline.
    """
    if weight is None or isinstance(weight, (int, float)) or not isinstance(weight, Mapping):
        return weight
    known = list(components)
    for name in weight:
        if name not in known:
            raise StateError(
                f"{name!r} is not a component of this pipeline ({', '.join(known)}).{did_you_mean(str(name), known)}"
            )
    return weight.get(component)
