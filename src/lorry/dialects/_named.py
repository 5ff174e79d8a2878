"""Read any file whose keys name their modules: the work that most dialects share."""

from __future__ import annotations

import torch
from torch import Tensor

from lorry.adapters import Adapter, Entry, Ignored
from lorry.algebra import LoraDelta
from lorry.dialects._alphas import Alpha, read_alpha
from lorry.dialects._layers import Layer, sort_keys
from lorry.dialects._rules import Rules, find_rules
from lorry.dialects._suffixes import Role
from lorry.errors import FormatError
from lorry.files import TensorFile
from lorry.names import Target


def read_named(file: TensorFile, dialect: str) -> Adapter:
    """Return the adapter in a file whose keys name their modules, in whatever mixture of spellings.

    Args:
        file: the file; its tensors may be on the meta device, but for alphas.
        dialect: the name to put on the adapter.

    Returns:
        The adapter, its entries sorted by target. It shares the file's tensors.

    Raises:
        UnsupportedAdapterError: some tensors are of a family that lorry cannot apply.
        FormatError: two tensors contradict each other, or one has no meaning.
    """
    found = sort_keys(file.tensors, file.source)
    rules = find_rules(file, any("alpha" in layer for layer in found.layers.values()))
    entries, ignored, unknown = [], found.ignored, found.unknown
    for target, layer in sorted(found.layers.items()):
        if "down" in layer and "up" in layer:
            entries.append(_entry(file, target, layer, rules, ignored))
        else:
            unknown.extend(key for keys in layer.values() for key in keys)
    ignored.sort(key=lambda ignored: ignored.key)
    return Adapter(
        tuple(entries), dialect, tuple(ignored), tuple(sorted(unknown)), file.metadata, file.source
    )


def _entry(file: TensorFile, target: Target, layer: Layer, rules: Rules, ignored: list[Ignored]) -> Entry:
    keys: dict[Role, str] = {role: _one_of(file, spellings, ignored) for role, spellings in layer.items()}
    down, up = file.tensors[keys["down"]], file.tensors[keys["up"]]
    mid = file.tensors[keys["mid"]] if "mid" in keys else None
    kernel = down if mid is None else mid
    try:
        _check_dtypes(down, up)
        if "alpha" in keys:
            alpha = Alpha(read_alpha(file.tensors[keys["alpha"]], keys["alpha"]), False, "alpha tensor")
        else:
            alpha = rules.alpha(target, down.shape[0], kernel.shape[2:].numel() > 1)
        delta = LoraDelta(down, up, mid, alpha.value, alpha.rank_stabilised)
    except FormatError as error:
        raise FormatError(f"{file.source}: {target} (`{keys['down']}`): {error}") from error
    return Entry(target, delta, tuple(sorted(keys.values())), alpha.source)


def _check_dtypes(*factors: Tensor) -> None:
    for factor in factors:
        if not factor.is_floating_point() or factor.ndim == 0:
            raise FormatError(
                f"expected factors of floating-point numbers, got {factor.dtype} {tuple(factor.shape)}."
            )


def _one_of(file: TensorFile, keys: list[str], ignored: list[Ignored]) -> str:
    """Return the key to use of several that mean the same tensor, and put the others into `ignored`."""
    first, *others = keys
    for other in others:
        one, two = file.tensors[first], file.tensors[other]
        reason = f"the same tensor as `{first}`"
        if one.is_meta or two.is_meta:
            same, reason = one.shape == two.shape, f"the same layer as `{first}` (only headers compared)"
        else:
            same = one.numel() == two.numel() and torch.equal(one.flatten().double(), two.flatten().double())
        if not same:
            raise FormatError(
                f"{file.source}: `{first}` and `{other}` are the same layer in two spellings and hold different "
                "tensors. Which is meant only the file's author can say: remove one of them."
            )
        ignored.append(Ignored(other, reason))
    return first
