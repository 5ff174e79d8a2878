"""Sort a file's keys by the layer they belong to, whatever each of them is called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import final

from lorry.adapters import Ignored
from lorry.dialects._containers import dotted_target, find_flat_target
from lorry.dialects._paths import plain_key
from lorry.dialects._suffixes import REFUSED, ROLES, Role, split_suffix
from lorry.errors import FormatError, UnsupportedAdapterError, some
from lorry.names import DENOISER, DENOISERS, Target

Layer = Mapping[Role, list[str]]
"""The keys of one layer by role; more than one where the file spells it in several ways."""

_NO_DELTA = (
    ("_aux.", "bookkeeping of a slider tool"),
    ("bundle_emb.", "a textual inversion embedding: load it with `load_textual_inversion`"),
)


@final
@dataclass(frozen=True, eq=False, slots=True)
class Sorted:
    """All keys of a file."""

    layers: dict[Target, dict[Role, list[str]]] = field(default_factory=dict)
    ignored: list[Ignored] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def sort_keys(keys: Iterable[str], source: str) -> Sorted:
    """Sort keys into layers by their three parts: container prefix, module path, parameter suffix.

    Args:
        keys: of the file, in any order.
        source: the file, for messages.

    Raises:
        UnsupportedAdapterError: some keys are of a family that lorry cannot apply.
        FormatError: the keys are of several adapters at once.
    """
    found, families, names = Sorted(), dict[str, list[str]](), dict[str, str]()
    for key in sorted(keys):
        reason = _reason_to_ignore(key)
        ending = split_suffix(plain_key(key))
        if reason:
            found.ignored.append(Ignored(key, reason))
        elif ending is None:
            found.unknown.append(key)
        elif ending.suffix in REFUSED:
            families.setdefault(REFUSED[ending.suffix], []).append(key)
        else:
            if ending.adapter:
                names.setdefault(ending.adapter, key)
            found.layers.setdefault(_target(ending.stem), {}).setdefault(ROLES[ending.suffix], []).append(key)
    refuse_families(families, source)
    if len(names) > 1:
        raise FormatError(
            f"{source} holds {len(names)} adapters at once: {some(map(repr, names))}. Save each to a file of its own."
        )
    unknown = [key for key in found.unknown if not _takes_vector(found.layers, key)]
    return Sorted(_joined(found.layers), found.ignored, unknown)


def _target(stem: str) -> Target:
    return find_flat_target(stem) or dotted_target(stem)


def _takes_vector(layers: Mapping[Target, dict[Role, list[str]]], key: str) -> bool:
    """Whether `key` is the vector of a layer of LyCORIS's (IA)^3, which is called `weight` and nothing more."""
    stem, _, suffix = key.rpartition(".")
    layer = layers.get(_target(stem), {}) if suffix == "weight" else {}
    if "on_input" not in layer:
        return False
    layer.setdefault("ia3_weight", []).append(key)
    return True


def refuse_families(families: Mapping[str, Iterable[str]], source: str) -> None:
    """Raise when a file has tensors of families that lorry cannot apply.

    Args:
        families: keys by family.
        source: the file, for messages.

    Raises:
        UnsupportedAdapterError: names the families and their first keys.
    """
    if families:
        listed = "; ".join(f"{name} ({some(map(repr, keys), 2)})" for name, keys in families.items())
        raise UnsupportedAdapterError(
            f"{source} holds {listed}. This version of lorry cannot apply those, and loads no part of a file that it "
            "cannot apply in full."
        )


def _reason_to_ignore(key: str) -> str | None:
    if key.endswith(".position_ids"):
        return "a buffer of the text encoder, not trained"
    return next((reason for prefix, reason in _NO_DELTA if key.startswith(prefix)), None)


def _joined(layers: Mapping[Target, dict[Role, list[str]]]) -> dict[Target, dict[Role, list[str]]]:
    """Join the layers that a file spells in several ways: flattened and dotted, with its component and without."""
    named = {target.component for target in layers if target.component in DENOISERS}
    denoiser = named.pop() if len(named) == 1 else DENOISER
    first_at: dict[tuple[str, str], Target] = {}
    joined: dict[Target, dict[Role, list[str]]] = {}
    for target in sorted(layers, key=lambda target: (target.flat, target.component == DENOISER, target)):
        component = denoiser if target.component == DENOISER else target.component
        first = first_at.setdefault((component, target.path.replace(".", "_")), target)
        if not target.flat and target.path != first.path:
            first = target
        layer = joined.setdefault(first, {})
        for role, keys in layers[target].items():
            layer.setdefault(role, []).extend(keys)
    return joined
