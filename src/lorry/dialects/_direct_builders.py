"""Build the families that factor nothing: full differences, replacements, norm layers, and (IA)^3."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from lorry.algebra import FullDelta, Ia3Delta, PartsDelta, ReplaceDelta
from lorry.dialects._parts import Built, LayerParts
from lorry.dialects._patterns import matches_whole
from lorry.errors import FormatError


def build_full(parts: LayerParts) -> Built:
    """Build a difference of a weight."""
    return Built(FullDelta(parts.tensors["diff"]))


def build_bias(parts: LayerParts) -> Built:
    """Build a difference of a bias alone."""
    return Built(PartsDelta(None, FullDelta(parts.tensors["diff_b"])))


def build_saved(parts: LayerParts) -> Built:
    """Build what stands in the place of a weight. A bias beside it is the caller's to put there."""
    return Built(ReplaceDelta(parts.tensors["saved_weight"]))


def build_saved_bias(parts: LayerParts) -> Built:
    """Build what stands in the place of a bias alone."""
    return Built(PartsDelta(None, ReplaceDelta(parts.tensors["saved_bias"])))


def build_norm(parts: LayerParts) -> Built:
    """Build a difference of a norm layer: of its weight, its bias, or both."""
    weight, bias = parts.tensors.get("w_norm"), parts.tensors.get("b_norm")
    on_weight = None if weight is None else FullDelta(weight)
    if bias is not None:
        return Built(PartsDelta(on_weight, FullDelta(bias)))
    return Built(FullDelta(parts.tensors["w_norm"]))


def build_vector(parts: LayerParts) -> Built:
    """Build an (IA)^3 of LyCORIS."""
    return Built(Ia3Delta(parts.tensors["ia3_weight"], parts.is_set("on_input")))


def build_peft_vector(parts: LayerParts) -> Built:
    """Build an (IA)^3 of PEFT, which scales the bias as well where it scales the output.

    Source: huggingface/peft, `tuners/ia3/layer.py`.
    """
    vector = parts.tensors["ia3_l"]
    if _is_on_input(parts, vector):
        return Built(Ia3Delta(vector, on_input=True, neutral=1.0))
    on_bias = Ia3Delta(vector, neutral=1.0, target_shape=(vector.numel(),))
    return Built(PartsDelta(Ia3Delta(vector, neutral=1.0), on_bias))


def _is_on_input(parts: LayerParts, vector: Tensor) -> bool:
    """Whether a vector is for the input: (1, in) is; (1, count, 1, 1) of a convolution only the config tells."""
    if vector.ndim == 2 and vector.numel() > 1:
        return vector.shape[0] == 1
    listed = parts.option("feedforward_modules")
    if listed is None and parts.option("peft_type") is None:
        raise FormatError(
            f"an (IA)^3 vector of {tuple(vector.shape)} may be for a convolution's input or its output; only "
            "`feedforward_modules` of the config tells. Put `adapter_config.json` beside the file."
        )
    return matches(listed, parts.target.path)


def matches(listed: object, path: str) -> bool:
    """Whether a path is one of PEFT's `feedforward_modules`: a pattern for all of it, or endings."""
    if isinstance(listed, str):
        return matches_whole(listed, path)
    return isinstance(listed, Iterable) and any(path.endswith(str(ending)) for ending in listed)
