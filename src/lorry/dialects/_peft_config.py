"""PEFT's description of an adapter on one model: the config that belongs to its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from math import isclose
from typing import Any

from lorry.algebra import Delta, DoraDelta, PartsDelta
from lorry.dialects._direct_builders import matches
from lorry.dialects._peft_apart import is_saved, take_apart_for_peft
from lorry.dialects._peft_kinds import KINDS, Kind, kind_of
from lorry.dialects._peft_rules import PeftRules
from lorry.names import Target

Deltas = Mapping[str, Delta]
"""The deltas of one component by module path."""


def find_obstacles(deltas: Deltas) -> dict[str, str]:
    """Return, by path, why a layer cannot stand in one config with the others."""
    saved = {path: delta for path, delta in deltas.items() if is_saved(delta)}
    deltas = {path: delta for path, delta in deltas.items() if path not in saved}
    if saved and not deltas:
        alone = "PEFT saves whole tensors beside layers that it tunes, of which there are none"
        return {path: f"{delta.family}: {alone}" for path, delta in saved.items()}
    kinds = Counter(kind_of(delta) for delta in deltas.values())
    main = "LORA" if len(kinds) > 1 else next(iter(kinds), "LORA")
    found = {
        path: f"{delta.family}: PEFT has one type for all layers of a model, here {main}"
        for path, delta in deltas.items()
        if kind_of(delta) != main
    }
    inside = {path: delta for path, delta in deltas.items() if path not in found}
    return {**found, **KINDS[main].obstacles(inside)} if main in KINDS else found


def make_config(deltas: Deltas, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of one component.

    Args:
        deltas: without obstacles.
        kept: the config that the adapter came with, or nothing. It is returned as it is where it still says of every
            layer what the layer is; else the fields that no layer contradicts are kept.
    """
    saved = _saved_options(deltas)
    deltas = {path: delta for path, delta in deltas.items() if not is_saved(delta)}
    kind = KINDS[kind_of(next(iter(deltas.values())))]
    if (
        kept
        and _tells_the_truth(kept, deltas, kind)
        and all(kept.get(name) not in (None, "none", []) for name in saved)
    ):
        return dict(kept)
    made = {**_strength(deltas, kind), **kind.options(deltas), "target_modules": sorted(deltas)}
    return {**kept, **made, **saved, "peft_type": kind.name}


def _saved_options(deltas: Deltas) -> dict[str, Any]:
    """What a config says of what PEFT saves whole: modules, and the biases of the layers that it tunes, or of all."""
    roles = {path: take_apart_for_peft(delta) for path, delta in deltas.items()}
    modules = sorted(path for path, found in roles.items() if "saved_weight" in found)
    alone = any("saved_bias" in found and "saved_weight" not in found for found in roles.values())
    biases = (
        "all" if alone else "lora_only" if any("saved_bias_of_base" in r for r in roles.values()) else None
    )
    return {**({"modules_to_save": modules} if modules else {}), **({"bias": biases} if biases else {})}


def _tells_the_truth(kept: Mapping[str, Any], deltas: Deltas, kind: Kind) -> bool:
    """Whether a config gives each layer the rank and the scale that it has, and the options of its kind."""
    if str(kept.get("peft_type") or "LORA").rsplit(".", 1)[-1] != kind.name:
        return False
    if not all(_says(kept, name, value, deltas) for name, value in kind.options(deltas).items()):
        return False
    rules = PeftRules({None: kept})
    return all(_has_scale(rules, path, delta, kind) for path, delta in deltas.items())


def _says(kept: Mapping[str, Any], name: str, value: Any, deltas: Deltas) -> bool:
    """Whether a config says of an option what it is, in whatever words; what it leaves out is off."""
    if name == "feedforward_modules":
        return all(matches(kept.get(name), path) == (path in value) for path in deltas)
    return kept.get(name) == value or (not value and not kept.get(name))


def _has_scale(rules: PeftRules, path: str, delta: Delta, kind: Kind) -> bool:
    if kind.alpha_name is None:
        return True
    target = Target("", path)
    rank, alpha = rules.rank(target), rules.alpha(target, 1, False)
    if rank is None or delta.rank not in (None, rank):
        return False
    scale = 1.0 if alpha.value is None else alpha.value / (rank**0.5 if alpha.rank_stabilised else rank)
    return isclose(scale, delta.rank_scale, rel_tol=1e-12)


def _strength(deltas: Deltas, kind: Kind) -> dict[str, Any]:
    """The commonest rank and alpha, and what differs from them."""
    if kind.alpha_name is None:
        return {}
    stabilised = kind.name == "LORA" and all(_is_stabilised(delta) for delta in deltas.values())
    ranks = {path: kind.rank(delta) for path, delta in deltas.items()}
    roots = {path: rank**0.5 if stabilised else rank for path, rank in ranks.items()}
    alphas = {path: _alpha(delta, roots[path], stabilised) for path, delta in deltas.items()}
    rank, alpha = _commonest(ranks.values()), _commonest(alphas.values())
    return {
        "r": rank,
        kind.alpha_name: alpha,
        "rank_pattern": {f"^{path}": r for path, r in ranks.items() if r != rank},
        "alpha_pattern": {f"^{path}": a for path, a in alphas.items() if a != alpha},
        **({"use_rslora": stabilised} if kind.name == "LORA" else {}),
    }


def _alpha(delta: Delta, root: float, stabilised: bool) -> float:
    """The alpha of a delta: the one that it has, where that alone gives its scale."""
    own = getattr(_inner(delta), "alpha", None)
    if own is None or (not stabilised and own / root != delta.rank_scale):
        return delta.rank_scale * root
    return own


def _is_stabilised(delta: Delta) -> bool:
    return getattr(_inner(delta), "rank_stabilised", False)


def _inner(delta: Delta) -> Delta | None:
    inner = delta.on_weight if isinstance(delta, PartsDelta) else delta
    return inner.inner if isinstance(inner, DoraDelta) else inner


def _commonest(numbers: Iterable[float]) -> float:
    return Counter(numbers).most_common(1)[0][0]
