"""Copies of parameters with deltas added, for families that have no cheaper side path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import final

import torch
from torch import Tensor

from lorry.algebra import Delta
from lorry.patching.fused import FusedWeights
from lorry.patching.fusing import fused_parameter
from lorry.patching.layer_kinds import PARAMETERS, plain_parameter
from lorry.patching.modes import without_modes
from lorry.patching.patches import mark_empty, mark_filled
from lorry.patching.placement import module_device, module_dtype
from lorry.patching.resident import Resident
from lorry.patching.scenes import Scene
from lorry.patching.side_path import SidePath
from lorry.patching.strength import Strength
from lorry.patching.undo import Undo

COPIES = [f"lorry_{key}" for key in PARAMETERS]
"""The buffers that they stand in."""


@final
@dataclass(frozen=True, slots=True)
class Acting:
    """An adapter that acts through the side path, and how strongly."""

    resident: Resident
    strength: Strength


@final
class Copies:
    """The copies that stand in the modules of one model. Fields are replaced, never changed in place."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[tuple[Resident, float], ...]] = {}
        """By module path: of whom its copies were made, and how strong. Of nobody when they are out of date."""

    def __bool__(self) -> bool:
        return bool(self._made)

    def forget(self, undo: Undo) -> None:
        """Make all copies anew at the next refresh: what they were made from changes."""
        undo.set_attribute(self, "_made", dict.fromkeys(self._made, ()))

    def refresh(
        self,
        scene: Scene,
        acting: Mapping[str, Acting],
        modules: Mapping[str, SidePath],
        weights: FusedWeights,
        undo: Undo,
    ) -> None:
        """Give the modules their copies, where a scene has such, but those that have them already."""
        if not self._made and not scene.copied:
            return
        with without_modes():
            gone = [path for path in self._made if path not in scene.copied and path in modules]
            for name in COPIES:
                undo.set_in_all([modules[path]._buffers for path in gone], name, repeat(None))
            made = {}
            for path, names in scene.copied.items():
                made[path] = tuple((acting[name].resident, acting[name].strength.at(path)) for name in names)
                if self._made.get(path) == made[path]:
                    continue
                strengths = dict(zip(names, made[path], strict=True))
                joined = scene.joined.get(path, {})
                for key in PARAMETERS:
                    parts = [
                        (part, strength)
                        for name, (resident, strength) in strengths.items()
                        if not (key == "weight" and name in joined)
                        and (part := resident.deltas[path].part(key)) is not None
                    ]
                    copy = (
                        _copy(path, modules[path], key, weights.completed(parts, modules), weights)
                        if parts
                        else None
                    )
                    undo.set_item(modules[path]._buffers, f"lorry_{key}", copy)
            undo.set_attribute(self, "_made", made)
            reached = [modules[path] for path in (*gone, *made)]
            for name in COPIES:
                mark_filled([m for m in reached if m._buffers[name] is not None], [name], undo)
                mark_empty([m for m in reached if m._buffers[name] is None], [name], undo)


def _copy(
    path: str, module: SidePath, key: str, parts: Sequence[tuple[Delta, float]], weights: FusedWeights
) -> Tensor:
    """Make a parameter as it is with deltas added."""
    dtype = module_dtype(module)
    if key == "bias" and module._parameters.get("bias") is None:
        return fused_parameter(
            torch.zeros(parts[0][0].shape, dtype=dtype, device=module_device(module)), parts
        )
    plain = plain_parameter(path, module, key)
    needs_base = any(part.needs_base for part, _ in parts)
    base = weights.unfused(path, module, key, plain) if needs_base else plain
    return fused_parameter(plain.to(dtype), parts, base)
