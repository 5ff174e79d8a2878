"""Sort a file's keys by the layer they belong to, whatever each of them is called."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import final

from lorry.adapters import Ignored
from lorry.dialects._containers import dotted_target, find_flat_target
from lorry.dialects._embeddings import BUNDLE
from lorry.dialects._lone import BOOKKEEPING
from lorry.dialects._paths import plain_key
from lorry.dialects._suffixes import REFUSED, ROLES, SHARED, Role, split_suffix
from lorry.errors import FormatError, UnsupportedAdapterError, some
from lorry.names import DENOISER, DENOISERS, Target

_OF_PEFT = re.compile(r"(?:\w+\.)?base_model\.model\.")
"""How the keys of PEFT's folders begin; those of a folder for a component, with its name in front."""

Layer = Mapping[Role, list[str]]
"""The keys of one layer by role; more than one where the file spells it in several ways."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class Sorted:
    """All keys of a file."""

    layers: dict[Target, dict[Role, list[str]]] = field(default_factory=dict)
    ignored: list[Ignored] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    bundled: list[str] = field(default_factory=list)
    """Of textual inversions."""
    has_parts: bool = False
    """Whether there are parts of layers, which have an alpha in common."""


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
    layers: dict[str, dict[Role, list[str]]] = {}
    parts: dict[tuple[str, str], str] = {}
    for key in sorted(keys):
        if key.startswith(BUNDLE):
            found.bundled.append(key)
            continue
        ending = split_suffix(plain_key(key))
        if reason := _reason_to_ignore(key):
            found.ignored.append(Ignored(key, reason))
        elif ending is None:
            found.unknown.append(key)
        elif ending.suffix in REFUSED:
            families.setdefault(REFUSED[ending.suffix], []).append(key)
        elif ending.suffix == "oft_blocks" and ending.adapter and ending.adapter.isdecimal():
            parts[ending.stem, ending.adapter] = key
        else:
            if ending.adapter:
                names.setdefault(ending.adapter, key)
            layers.setdefault(ending.stem, {}).setdefault(ROLES[ending.suffix], []).append(key)
    refuse_families(families, source)
    if len(names) > 1 and all(map(str.isdecimal, names)):
        raise FormatError(
            f"{source} has the parts of layers by number ({some(map(repr, names.values()), 3)}), as a trainer has "
            "those of fused layers in memory. Save it with the trainer's own function, which joins them."
        )
    if len(names) > 1:
        raise FormatError(
            f"{source} holds {len(names)} adapters at once: {some(map(repr, names))}. Save each to a file of its own."
        )
    _share(layers)
    unknown = [key for key in found.unknown if not _is_bare(layers, key)]
    by_part = _by_part(parts, layers)
    by_target = _by_target(layers)
    for target, layer in by_part.items():
        for role, of_role in layer.items():
            by_target.setdefault(target, {}).setdefault(role, []).extend(of_role)
    return Sorted(_joined(by_target), found.ignored, unknown, found.bundled, bool(parts))


def _share(layers: dict[str, dict[Role, list[str]]]) -> None:
    """Give the tensors that stand once in a file to each layer that needs them; where none does, they stay."""
    takers = [layer for layer in layers.values() if "vera_lambda_b" in layer]
    homes = [stem for stem, layer in layers.items() if takers and layer.keys() <= SHARED]
    for stem in homes:
        for role, keys in layers.pop(stem).items():
            for layer in takers:
                layer[role] = keys


def _is_bare(layers: dict[str, dict[Role, list[str]]], key: str) -> bool:
    """Whether `key` has a meaning though it ends in `weight` or `bias` and nothing more; then it joins its layer.

    Beside `on_input` it is the vector of LyCORIS's (IA)^3. In a file of PEFT's it is a whole tensor: of a module of
    `modules_to_save`, or a bias that was trained along (`bias="all"`).
    """
    stem, _, suffix = key.rpartition(".")
    if suffix == "weight" and "on_input" in layers.get(stem, {}):
        role = "ia3_weight"
    elif suffix in ("weight", "bias") and _OF_PEFT.match(key):
        role = f"saved_{suffix}"
    else:
        return False
    layers.setdefault(stem, {}).setdefault(role, []).append(key)
    return True


def _by_part(
    parts: Mapping[tuple[str, str], str], layers: dict[str, dict[Role, list[str]]]
) -> dict[Target, dict[Role, list[str]]]:
    """Take the layers whose parts kohya's OFT of FLUX.1 has by number, each with the alpha of the whole.

    A layer that is not fused has one part, `oft_blocks.0`.

    Source: kohya-ss/sd-scripts, `networks/oft_flux.py`.
    """
    counts = Counter(stem for stem, _ in parts)
    found: dict[Target, dict[Role, list[str]]] = {}
    for (stem, number), key in parts.items():
        target = find_flat_target(stem) or dotted_target(stem)
        part = target if counts[stem] == 1 else replace(target, path=f"{target.path}.{number}")
        found[part] = {role: list(keys) for role, keys in layers.get(stem, {}).items()}
        found[part].setdefault("oft_blocks", []).append(key)
    for stem in counts:
        layers.pop(stem, None)
    return found


def _by_target(layers: Mapping[str, dict[Role, list[str]]]) -> dict[Target, dict[Role, list[str]]]:
    found: dict[Target, dict[Role, list[str]]] = {}
    for stem, layer in layers.items():
        target = find_flat_target(stem) or dotted_target(stem)
        first = found.setdefault(target, layer)
        if first is not layer:
            for role, keys in layer.items():
                first.setdefault(role, []).extend(keys)
    return found


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
    if key.endswith(".lora_rank"):  # FastVideo
        return BOOKKEEPING["lora_rank"]
    return "bookkeeping of a slider tool" if key.startswith("_aux.") else None


def _joined(layers: Mapping[Target, dict[Role, list[str]]]) -> dict[Target, dict[Role, list[str]]]:
    """Join the layers that a file spells in several ways: flattened and dotted, with its component and without."""
    named = {target.component for target in layers if target.component in DENOISERS}
    denoiser = named.pop() if len(named) == 1 else DENOISER
    first_at: dict[tuple[str, str], Target] = {}
    joined: dict[Target, dict[Role, list[str]]] = {}
    for target in sorted(layers, key=_dotted_and_named_first):
        component = denoiser if target.component == DENOISER else target.component
        first = first_at.setdefault((component, target.path.replace(".", "_")), target)
        if not target.flat and target.path != first.path:
            first = target
        layer = joined.setdefault(first, {})
        for role, keys in layers[target].items():
            layer.setdefault(role, []).extend(keys)
    return joined


def _dotted_and_named_first(target: Target) -> tuple[bool, bool, str, str]:
    return (target.flat, target.component == DENOISER, target.component, target.path)
