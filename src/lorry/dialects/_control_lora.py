"""Stability AI's Control-LoRAs: what makes a ControlNet of a UNet, and no adapter of it.

    lora_controlnet                                         the marker, which holds nothing
    input_blocks.4.1.transformer_blocks.0.attn1.to_q.down   a pair to add to the UNet's layer
    input_hint_block.0.weight                               a whole tensor, new or in place of the UNet's

Pattern: the ControlNet's path in the original's names, then `up` and `down`, or `weight`; and `bias`, always whole.
The strength is 1.

Source: Comfy-Org/ComfyUI, `comfy/controlnet.py` (`ControlLora`, `ControlLoraOps`).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lorry.adapters import Adapter, Entry, Ignored
from lorry.algebra import Delta, LoraDelta, PartsDelta, ReplaceDelta
from lorry.errors import FormatError
from lorry.files import TensorFile
from lorry.names import Target

CONTROLNET = "controlnet"
_MARKER = "lora_controlnet"
_WEIGHTS = (frozenset({"up", "down"}), frozenset({"weight"}), frozenset[str]())


def read_control_lora(file: TensorFile) -> Adapter:
    """Return what a Control-LoRA makes of a UNet's ControlNet, as changes of the component `controlnet`.

    Raises:
        FormatError: it is no Control-LoRA, or two tensors do not fit each other.
    """
    if _MARKER not in file.tensors:
        raise FormatError(
            f"{file.source} is no Control-LoRA of Stability AI: it has no `{_MARKER}`. A LoRA is loaded with "
            "`load_lora_weights`, a whole ControlNet with `ControlNetModel.from_single_file`."
        )
    layers: dict[str, dict[str, str]] = {}
    for key in file.tensors.keys() - {_MARKER}:
        path, _, end = key.rpartition(".")
        layers.setdefault(path, {})[end] = key
    entries, unknown = list[Entry](), list[str]()
    for path, keys in sorted(layers.items()):
        if frozenset(keys) - {"bias"} not in _WEIGHTS:
            unknown += keys.values()
            continue
        try:
            delta = _delta({end: file.tensors[key] for end, key in keys.items()})
        except FormatError as error:
            raise FormatError(f"{file.source}: `{path}`: {error}") from error
        entries.append(Entry(Target(CONTROLNET, path), delta, tuple(sorted(keys.values()))))
    marker = (Ignored(_MARKER, "it says that this is a Control-LoRA"),)
    return Adapter(tuple(entries), "control-lora", marker, tuple(sorted(unknown)), file.metadata, file.source)


def _delta(parts: Mapping[str, Tensor]) -> Delta:
    bias = ReplaceDelta(parts["bias"]) if "bias" in parts else None
    if bias is not None and len(parts) == 1:
        return PartsDelta(None, bias)
    weight = LoraDelta(parts["down"], parts["up"]) if "up" in parts else ReplaceDelta(parts["weight"])
    return weight if bias is None else PartsDelta(weight, bias)
