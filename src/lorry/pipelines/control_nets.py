"""ControlNets out of Control-LoRAs: a UNet's own weights with a file's changes, in a model of their own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from lorry.algebra import Delta
from lorry.binding import bind
from lorry.dialects import CONTROLNET, read_control_lora
from lorry.errors import FormatError, StateError, some
from lorry.files import TensorFile, read_adapter_file
from lorry.patching import Strength, Undo, find_state, get_state
from lorry.pipelines.components import unwrapped
from lorry.pipelines.reading import FILE_ARGUMENTS, check_arguments

if TYPE_CHECKING:
    from diffusers import ControlNetModel, UNet2DConditionModel

_HINT = "input_hint_block."
"""What the layers are called that a picture goes through, in a running count that takes activations along."""


def control_net(source: str | os.PathLike[str], unet: UNet2DConditionModel, **kwargs: Any) -> ControlNetModel:
    """Make a ControlNet of a UNet and a Control-LoRA of Stability AI.

    It is a model of its own, for a pipeline that takes ControlNets. It shares no memory with the UNet, which is left as
    it is. Its strength is the pipeline's `controlnet_conditioning_scale`.

    Args:
        source: the file, its folder, or its id on the Hub.
        unet: of the base model that the file was made for, without adapters.
        kwargs: where to find the file, as for `load_lora_weights` (`weight_name`, `subfolder`, …).

    Returns:
        The ControlNet, in the UNet's dtype and on its device.

    Raises:
        FormatError: the file is no Control-LoRA, or lacks layers that a UNet does not have.
        BindingError: the file was made for another base model, or has keys with no place in a ControlNet.
        StateError: adapters are loaded on the UNet.
    """
    from diffusers import ControlNetModel

    check_arguments(kwargs)
    model: Any = unwrapped(unet)
    if find_state(model) is not None:
        raise StateError(
            "Adapters are loaded on this UNet, and a ControlNet is made of its own weights. Make it first, or call "
            "`unload_lora_weights()` before."
        )
    file = read_adapter_file(source, **{k: v for k, v in kwargs.items() if k in FILE_ARGUMENTS})
    adapter = read_control_lora(file)
    widths = _hint_widths(file)
    made = ControlNetModel.from_unet(
        model, conditioning_embedding_out_channels=widths[1:], conditioning_channels=widths[0]
    )
    net = made.to(model.device, model.dtype).eval().requires_grad_(False)
    deltas = bind(adapter, {CONTROLNET: net}).deltas[CONTROLNET]
    _check_whole(net, deltas, file.source)
    with Undo() as undo:
        state = get_state(net, undo)
        state.add(CONTROLNET, deltas, undo)
        state.set_active({CONTROLNET: Strength()}, undo)
        state.fuse(undo, lossy=True)
        state.clear(undo, keep_fused=True)
    return net


def _hint_widths(file: TensorFile) -> tuple[int, ...]:
    """Return the channels of the picture, and those of each size that it is brought to."""
    numbers = [key.removeprefix(_HINT).partition(".")[0] for key in file.tensors if key.startswith(_HINT)]
    counted = sorted({int(number) for number in numbers if number.isdecimal()})
    weights = [file.tensors.get(f"{_HINT}{number}.weight") for number in counted[:-1]]
    shapes = [weight.shape for weight in weights if weight is not None and weight.ndim == 4]
    if not shapes or len(shapes) < len(weights):
        raise FormatError(
            f"{file.source} lacks weights of the layers that a picture goes through (`{_HINT}0.weight`, …)."
        )
    return (shapes[0][1], *(shape[0] for shape in shapes[::2]))


def _check_whole(net: nn.Module, deltas: Mapping[str, Delta], source: str) -> None:
    """Raise where the file lacks a tensor that no UNet has."""
    missing = [
        name
        for name, _ in net.named_parameters()
        if name.startswith("controlnet_")
        and (
            (delta := deltas.get(name.rpartition(".")[0])) is None
            or delta.part(name.rpartition(".")[2]) is None
        )
    ]
    if missing:
        raise FormatError(
            f"{source} lacks {len(missing)} tensors of layers that a UNet does not have: {some(missing, 3)}."
        )
