"""What planning an adapter came to, for the next of its form on models of the same make."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lorry.adapters import Adapter, Form, form_of
from lorry.algebra import Delta
from lorry.binding.index import Make, ModuleIndex
from lorry.binding.places import computes_fused
from lorry.binding.report import LoadReport
from lorry.binding.targets import layers_at, weight_shape

KEPT = 4
"""How many plans are kept of one form: it may be loaded on several pipelines in turn."""

Routes = Mapping[str, tuple[str, ...]]
"""The pipeline's components for each that the file names."""
Deltas = dict[str, dict[str, Delta]]
"""By component and by module path."""
Layers = Mapping[str, nn.Module]
"""By path."""


@final
@dataclass(frozen=True, slots=True)
class _Ground:
    """The layers and bare parameters of a live model that a plan is for, and the blocks that these are in."""

    layers: Sequence[tuple[tuple[int, ...] | None, bool, int]]
    """Of each, the shape of the weight that a delta must have, whether it has no bias, how many modules are in it."""
    blocks: Sequence[tuple[str, tuple[str, ...], bool]]
    """Of each, the path, the names of what is in it, and whether it is an attention that computes fused."""
    bare: Mapping[str, torch.Size | None]
    """By name, the shapes of the bare parameters that the plan is for; None where there is none."""

    @classmethod
    def of(cls, model: nn.Module, paths: Collection[str]) -> tuple[_Ground, Layers]:
        """Return that of a plan for these paths, and the layers."""
        layers, blocks = layers_at(model, paths)
        others = [path for path in paths if path not in layers] if len(layers) < len(paths) else ()
        ground = cls(
            [
                (weight_shape(one), one._parameters.get("bias") is None, len(one._modules))
                for one in layers.values()
            ],
            [(path, tuple(block._modules), computes_fused(block)) for path, block in blocks.items()],
            {path: _bare_shape(blocks, path) for path in others},
        )
        return ground, layers


def _bare_shape(blocks: Mapping[str, nn.Module], path: str) -> torch.Size | None:
    owner, _, name = path.rpartition(".")
    parameter = blocks[owner]._parameters.get(name) if owner in blocks else None
    return None if parameter is None else parameter.shape


@final
@dataclass(frozen=True, eq=False, slots=True)
class _Known:
    """Which entry of a form lands on which module, and what that depends on."""

    makes: Mapping[str, Make]
    routes: Routes
    numbers: Mapping[str, Mapping[str, int]]
    """By component and module path: the number of the entry whose delta goes there just as it is."""
    report: LoadReport
    grounds: Mapping[str, WeakKeyDictionary[nn.Module, _Ground]] = field(
        default_factory=lambda: defaultdict(WeakKeyDictionary)
    )
    """By component: the models that were of its make, each as it was then."""

    def layers_of(self, indexes: Mapping[str, ModuleIndex]) -> dict[str, Layers] | None:
        """Return the layers that the plan is for, by component.

        None where it was not for these models before, or not all that it names stands as it stood.
        """
        if self.makes.keys() != indexes.keys() or any(
            index.model not in self.grounds[name] for name, index in indexes.items()
        ):
            return None
        layers = {}
        for name, index in indexes.items():
            ground, layers[name] = _Ground.of(index.model, self.numbers.get(name, ()))
            if ground != self.grounds[name][index.model]:
                return None
        return layers

    def remember(self, indexes: Mapping[str, ModuleIndex]) -> dict[str, Layers]:
        """Know these models, which are of its make, from now on; return the layers that the plan is for."""
        layers = {}
        for name, index in indexes.items():
            self.grounds[name][index.model], layers[name] = _Ground.of(
                index.model, self.numbers.get(name, ())
            )
        return layers


_known: WeakKeyDictionary[Form, tuple[_Known, ...]] = WeakKeyDictionary()


def find_known(
    adapter: Adapter, indexes: Mapping[str, ModuleIndex], routes: Routes
) -> tuple[Deltas, LoadReport, Mapping[str, Layers]] | None:
    """Return the deltas, the report and the layers of an adapter whose like was planned before on such models, or None.

    Where there are such, its numbers are waited for: the report says whether all are zeros.
    """
    form = form_of(adapter)
    known = () if form is None else _known.get(form, ())
    if not known:
        return None
    known = [one for one in known if one.routes == routes]
    found, layers = next(((one, here) for one in known if (here := one.layers_of(indexes))), (None, {}))
    if found is None:
        makes = _makes(indexes)
        found = next((one for one in known if one.makes == makes), None)
        if found is None:
            return None
        layers = found.remember(indexes)
    deltas = {
        component: {path: adapter.entries[number].delta for path, number in numbers.items()}
        for component, numbers in found.numbers.items()
    }
    adapter.arrived()
    components = tuple(
        replace(one, adds_nothing=all(delta.adds_nothing() for delta in deltas[one.component].values()))
        for one in found.report.components
    )
    return deltas, replace(found.report, source=adapter.source, components=components), layers


def remember(
    adapter: Adapter, indexes: Mapping[str, ModuleIndex], routes: Routes, deltas: Deltas, report: LoadReport
) -> None:
    """Keep a plan in which nothing is left over, and every delta goes to its module just as the file has it."""
    form = form_of(adapter)
    if form is None or report.ignored or report.unknown or report.mismatched or report.embeddings:
        return
    places = {id(entry.delta): number for number, entry in enumerate(adapter.entries)}
    if not all(id(delta) in places for here in deltas.values() for delta in here.values()):
        return
    numbers = {
        component: {path: places[id(delta)] for path, delta in here.items()}
        for component, here in deltas.items()
    }
    if len({number for here in numbers.values() for number in here.values()}) < len(adapter.entries):
        return
    one = _Known(_makes(indexes), routes, numbers, report)
    one.remember(indexes)
    _known[form] = (one, *_known.get(form, ())[: KEPT - 1])


def _makes(indexes: Mapping[str, ModuleIndex]) -> dict[str, Make]:
    return {name: index.make for name, index in indexes.items()}
