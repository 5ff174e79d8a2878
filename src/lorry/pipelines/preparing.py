"""Make models ready for `torch.compile`: compiled once, they serve every adapter."""

from __future__ import annotations

from torch import nn

from lorry.errors import StateError
from lorry.patching import Undo, exclusive, get_state
from lorry.pipelines.components import components_of, unwrapped

DEFAULT_RANK = 32
"""Enough for most files; what is larger acts through copies of weights."""


def prepare(target: object, rank: int = DEFAULT_RANK) -> None:
    """Prepare a pipeline, or one model, so that compiled code stays valid whatever happens to its adapters.

    Call it before `torch.compile`. From then on loading, removing, weighing, switching (between ranks and targets),
    disabling, fusing and unfusing recompile nothing, the text encoders included; only an adapter in training does, and
    one that gives a layer a bias which it has not got. The denoiser's and text encoders' own weights cannot be trained
    meanwhile. `unload_lora_weights` takes the preparation off with the adapters.

    Args:
        target: a pipeline, or a model.
        rank: of the slots in every linear layer. Adapters that fit into it together act through a side path, which
            costs some work in every call, whether somebody acts or not; what does not fit, and what acts on other
            layers, acts through a copy of the weight, which costs a call nothing and a switch one fuse of that layer.
            With 0, everything acts through copies.

    Raises:
        StateError: `rank` is no number or negative, `target` has no model, or a layer cannot carry adapters.
    """
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise StateError(f"`rank`: expected a whole number, got {rank!r}.")
    models = [unwrapped(target)] if isinstance(target, nn.Module) else list(components_of(target).values())
    found = [model for model in models if isinstance(model, nn.Module)]
    if not found:
        raise StateError(
            f"Expected a pipeline or a model, got a {type(target).__name__} without any model in it."
        )
    with exclusive(found), Undo() as undo:
        for model in found:
            get_state(model, undo).prepare(rank, undo)
